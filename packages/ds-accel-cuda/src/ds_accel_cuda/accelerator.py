"""`CudaAccelerator`: NVIDIA GPUs behind ds-core's contract, answered by `torch.cuda`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from ds_core.accelerator import Accelerator, Capability

if TYPE_CHECKING:
    import torch

__all__ = ["CudaAccelerator"]

_FP8 = (8, 9)
"""Least compute capability with 8-bit floats. Source: CUDA C++ programming guide, compute capabilities."""


class CudaAccelerator(Accelerator):
    """NVIDIA GPUs.

    Args:
        module: what answers in the place of `torch.cuda`.
    """

    name: ClassVar[str] = "cuda"
    device_type: ClassVar[str] = "cuda"
    visible_devices_variable: ClassVar[str] = "CUDA_VISIBLE_DEVICES"
    exported_variables: ClassVar[tuple[str, ...]] = ("NCCL", "CUDA")
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
        """What every GPU since Volta computes in, bfloat16 where it is native, and 8-bit floats from Ada on."""
        import torch

        module = self.torch_module()
        found = {torch.float64, torch.float32, torch.float16}
        found |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
        if module.is_bf16_supported(including_emulation=False):
            found.add(torch.bfloat16)
        if tuple(module.get_device_capability()) >= _FP8:
            found |= {torch.float8_e4m3fn, torch.float8_e5m2}
        return frozenset(found)

    def comm_backend(self) -> str:
        """NCCL, which Windows does not have."""
        return "gloo" if os.name == "nt" else "nccl"

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Product, compute capability, multiprocessors and memory."""
        found = self.torch_module().get_device_properties(self._index(index))
        return {
            "name": str(found.name),
            "compute capability": f"{found.major}.{found.minor}",
            "multiprocessors": str(found.multi_processor_count),
            "memory": f"{found.total_memory / 2**30:.1f} GiB",
        }
