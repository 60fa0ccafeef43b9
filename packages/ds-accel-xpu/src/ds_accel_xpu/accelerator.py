"""`XpuAccelerator`: Intel GPUs through ``torch.xpu``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ds_core.accelerator import Accelerator, Capability
from ds_core.hooks import Availability

if TYPE_CHECKING:
    import torch

__all__ = ["XpuAccelerator", "devices_seen"]

_SHOWN = ("platform_name", "driver_version", "max_compute_units", "total_memory", "has_fp64", "is_integrated_gpu")


def devices_seen(module: Any = None) -> Availability:
    """How many devices torch.xpu sees, and what hides them if it sees none.

    Args:
        module: in place of ``torch.xpu``.
    """
    count = int((module or _torch_xpu()).device_count())
    if count:
        return Availability(usable=True, device_count=count)
    return Availability(
        usable=False,
        reason="torch.xpu sees no device, although there is an Intel GPU and its loader. Look at ZE_AFFINITY_MASK and "
        "ONEAPI_DEVICE_SELECTOR, which hide devices, and at the driver: sycl-ls, or apt-get install libze-intel-gpu1",
    )


class XpuAccelerator(Accelerator):
    """Intel GPUs. The answers are those of ``torch.xpu``; what older releases of it lack, core does without.

    Args:
        module: in place of ``torch.xpu``.
    """

    name: ClassVar[str] = "xpu"
    device_type: ClassVar[str] = "xpu"
    capabilities = frozenset(
        {
            Capability.STREAMS,
            Capability.EVENTS,
            Capability.PINNED_MEMORY,
            Capability.ALLOCATOR_STATS,
            Capability.STORAGE_ALIASING,
            Capability.ASYNC_COPY,
            Capability.COMPILE,
            Capability.COLLECTIVES,
            Capability.DATA_PTR,
        }
    )

    def __init__(self, module: Any = None) -> None:
        self._module: Any = module or _torch_xpu()
        if self._function("XPUGraph") is not None:
            self.capabilities = self.capabilities | {Capability.GRAPHS}

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Name, driver, memory and abilities, as the driver says them."""
        found = self._module.get_device_properties(self._index(index))
        shown = {key: str(value) for key in _SHOWN if (value := getattr(found, key, None)) is not None}
        return {"name": str(found.name), **shown}

    def dtypes(self) -> frozenset[torch.dtype]:
        """Dtypes of the current device: all have float32, bfloat16 and float16; not all have float64."""
        import torch

        found = {
            torch.float32,
            torch.bfloat16,
            torch.float16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
        }
        if self.has_float64():
            found.add(torch.float64)
        return frozenset(found)

    def has_float64(self, index: int | None = None) -> bool:
        """Whether the device computes in float64; client GPUs do not."""
        return bool(self._module.get_device_properties(self._index(index)).has_fp64)

    def comm_backend(self) -> str:
        """``xccl`` where torch was built with it, else gloo staged on the host."""
        import torch.distributed as dist

        return "xccl" if dist.is_available() and dist.is_xccl_available() else "gloo"

    def manual_seed(self, seed: int) -> None:
        """Seeds the host and every XPU."""
        import torch

        torch.manual_seed(seed)
        self._module.manual_seed_all(seed)

    def _function(self, name: str, accelerator: str | None = None) -> Callable[..., Any] | None:
        found: Callable[..., Any] | None = getattr(self._module, name, None)
        return found


def _torch_xpu() -> Any:
    import torch

    return torch.xpu
