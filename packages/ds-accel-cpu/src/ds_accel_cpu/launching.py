"""Running kernels on the CPU: with torch's number of threads, through the binding's pool."""

from __future__ import annotations

import torch

from ds_accel_cpu import _binding
from ds_core.ops.calls import CallableKernel, KernelOps, Run
from ds_core.ops.native import Kernel, KernelLibrary

__all__ = ["CpuLauncher", "callable_kernel", "cpu_ops"]


class CpuLauncher:
    """See `ds_core.ops.calls.Launcher`."""

    def bind(self, kernel: Kernel) -> Run:
        """What runs `kernel` on torch's number of threads."""
        native = _binding.Kernel(kernel.address)

        def run(packed: bytes, device: torch.device) -> None:
            native(packed, torch.get_num_threads())

        return run


def cpu_ops(library: KernelLibrary) -> KernelOps:
    """The ops of one level's library."""
    return KernelOps(library, CpuLauncher())


def callable_kernel(library: KernelLibrary, name: str, struct: str | None = None) -> CallableKernel:
    """One kernel of a level's library, see `CallableKernel`."""
    return CallableKernel(library, CpuLauncher(), name, struct)
