"""`RocmAccelerator`: AMD GPUs behind ds-core's contract, answered by `torch.cuda` of a torch that is built for ROCm."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from ds_core.accelerator import Accelerator, Capability

if TYPE_CHECKING:
    import torch

__all__ = ["RocmAccelerator"]

_FP8 = ("gfx950", "gfx1200", "gfx1201")
"""Architectures with arithmetic in OCP 8-bit floats. Source: AMD, ROCm data types and precision support."""


class RocmAccelerator(Accelerator):
    """AMD GPUs.

    Args:
        module: what answers in the place of `torch.cuda`.
    """

    name: ClassVar[str] = "rocm"
    device_type: ClassVar[str] = "cuda"
    visible_devices_variable: ClassVar[str] = "HIP_VISIBLE_DEVICES"
    exported_variables: ClassVar[tuple[str, ...]] = ("NCCL", "RCCL", "HIP", "HSA", "ROCR")
    capabilities = frozenset(
        {
            Capability.STREAMS,
            Capability.EVENTS,
            Capability.PINNED_MEMORY,
            Capability.GRAPHS,
            Capability.ALLOCATOR_STATS,
            Capability.STORAGE_ALIASING,
            Capability.ASYNC_COPY,
            Capability.COMPILE,
            Capability.COLLECTIVES,
            Capability.DATA_PTR,
        }
    )

    def __init__(self, module: ModuleType | None = None) -> None:
        self._module = module

    def torch_module(self) -> ModuleType:
        """`torch.cuda`, or what was passed in its place."""
        import torch

        return torch.cuda if self._module is None else self._module

    def dtypes(self) -> frozenset[torch.dtype]:
        """What every GPU of ROCm computes in, and 8-bit floats where the architecture has the OCP ones."""
        import torch

        found = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
        found |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
        arch = str(self.torch_module().get_device_properties(self._index(None)).gcnArchName)
        if arch.partition(":")[0] in _FP8:
            found |= {torch.float8_e4m3fn, torch.float8_e5m2}
        return frozenset(found)

    def comm_backend(self) -> str:
        """RCCL, which torch calls nccl."""
        return "nccl"

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Product, architecture, compute units and memory."""
        found = self.torch_module().get_device_properties(self._index(index))
        return {
            "name": str(found.name),
            "architecture": str(found.gcnArchName),
            "compute units": str(found.multi_processor_count),
            "memory": f"{found.total_memory / 2**30:.1f} GiB",
        }
