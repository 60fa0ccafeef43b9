"""`HpuAccelerator`: Intel Gaudi behind ds-core's contract, answered by `habana_frameworks.torch.hpu`.

Sources: Intel Gaudi documentation, "PyTorch Gaudi Theory of Operations" and the reference of its Python packages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from ds_core.accelerator import Accelerator, Capability
from ds_core.errors import AcceleratorError

if TYPE_CHECKING:
    import torch

__all__ = ["HpuAccelerator"]


class HpuAccelerator(Accelerator):
    """Intel Gaudi. A process takes one device.

    Args:
        module: what answers in the place of ``habana_frameworks.torch.hpu``.
        core: what answers in the place of ``habana_frameworks.torch.core``.
    """

    name: ClassVar[str] = "hpu"
    device_type: ClassVar[str] = "hpu"
    visible_devices_variable: ClassVar[str] = "HABANA_VISIBLE_MODULES"
    exported_variables: ClassVar[tuple[str, ...]] = ("HABANA", "HCCL", "PT_HPU")
    capabilities = frozenset(
        {
            Capability.STREAMS,
            Capability.EVENTS,
            Capability.PINNED_MEMORY,
            Capability.GRAPHS,
            Capability.ALLOCATOR_STATS,
            Capability.ASYNC_COPY,
            Capability.COMPILE,
            Capability.COLLECTIVES,
        }
    )

    def __init__(self, module: ModuleType | None = None, core: ModuleType | None = None) -> None:
        self._module = _bridge("habana_frameworks.torch.hpu") if module is None else module
        self._core = _bridge("habana_frameworks.torch.core") if core is None else core

    def torch_module(self) -> ModuleType:
        """``habana_frameworks.torch.hpu``, or what was passed in its place."""
        return self._module

    def synchronize(self, index: int | None = None) -> None:
        """Gives what was gathered to the device (lazy mode), and waits until all work is done."""
        self._core.mark_step()
        self._module.synchronize()

    def rng_state(self, index: int | None = None) -> torch.Tensor:
        """The generator's state, from the bridge's ``random``."""
        state: torch.Tensor = self._module.random.get_rng_state(self._index(index))
        return state

    def set_rng_state(self, state: torch.Tensor, index: int | None = None) -> None:
        """Puts back what `rng_state` gave."""
        self._module.random.set_rng_state(state, self._index(index))

    def dtypes(self) -> frozenset[torch.dtype]:
        """What Gaudi computes in: no float64, and no 64-bit integers unless the bridge is told so."""
        import torch

        found = {torch.float32, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
        if "GAUDI2" in self._generation() or "GAUDI3" in self._generation():
            found |= {torch.float16, torch.float8_e4m3fn, torch.float8_e5m2}
        return frozenset(found)

    def comm_backend(self) -> str:
        """HCCL, which the bridge registers when its module is imported."""
        if self._module.__name__ == "habana_frameworks.torch.hpu":
            _bridge("habana_frameworks.torch.distributed.hccl")
        return "hccl"

    def compile_backend(self) -> str | None:
        """The bridge's own backend of torch.compile."""
        return "hpu_backend"

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A page-locked copy, for transfers to this device."""
        return tensor.pin_memory(device="hpu")

    def graph(self) -> Any:
        """An ``HPUGraph``, captured between ``capture_begin`` and ``capture_end``."""
        return self._module.HPUGraph()

    def empty_cache(self) -> None:
        """Nothing to do: the bridge's allocator has no call for it."""

    def _generation(self) -> str:
        ask: Callable[[], object] = self._module.get_device_name
        return str(ask()).upper()


def _bridge(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AcceleratorError(
            f"accelerator hpu needs {name}, which cannot be imported ({error}); use Intel's Gaudi container, or "
            "install habana-torch-plugin from Intel's Gaudi release"
        ) from error
