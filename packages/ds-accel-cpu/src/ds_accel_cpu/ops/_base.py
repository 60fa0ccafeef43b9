"""Calling a kernel of a loaded library: an argument struct packed by name, torch's number of threads."""

from __future__ import annotations

from typing import Any

import torch

from ds_accel_cpu import _binding
from ds_core.ops.arguments import argument_struct
from ds_core.ops.native import DTYPE_CODES, KernelLibrary

__all__ = ["CallableKernel", "Kernels", "address", "code", "row_view"]

_CODE = {getattr(torch, name): value for name, value in DTYPE_CODES.items()}


def code(tensor: torch.Tensor | torch.dtype | None) -> int:
    """The number of a dtype in ds_kernel.h; 0 for a tensor that is left out."""
    if tensor is None:
        return 0
    return _CODE[tensor.dtype if isinstance(tensor, torch.Tensor) else tensor]


def address(tensor: torch.Tensor | None) -> int:
    """Where the first element lies; 0 for a tensor that is left out."""
    return 0 if tensor is None else tensor.data_ptr()


def row_view(x: torch.Tensor) -> torch.Tensor:
    """[rows, columns] of [..., columns] with dense rows, copied only if they are not dense or not evenly apart."""
    columns = x.shape[-1] if x.dim() else 1
    rows = x.reshape(x.numel() // columns if columns else 0, columns)
    return rows if rows.stride(1) == 1 else rows.contiguous()


class CallableKernel:
    """One row of a library's op table.

    Args:
        library: loaded and checked.
        name: of the row.
        struct: the argument struct; by default ``ds_<name>_args`` without a trailing underscore of the name.
    """

    __slots__ = ("_pack", "_run")

    def __init__(self, library: KernelLibrary, name: str, struct: str | None = None) -> None:
        self._run = _binding.Kernel(library.kernels[name].address)
        self._pack = argument_struct(struct or f"ds_{name.rstrip('_')}_args")

    def __call__(self, **arguments: Any) -> None:
        """Runs it on torch's number of threads.

        Raises:
            IndexError: an index tensor names a row that is not there; nothing was written.
            RuntimeError: the kernel refused the arguments.
        """
        self._run(self._pack(**arguments), torch.get_num_threads())


class Kernels:
    """Base of the families of ops.

    Args:
        library: loaded and checked; any level that this machine runs.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self.library = library

    def kernel(self, name: str, struct: str | None = None) -> CallableKernel:
        """A row of the library, ready to call."""
        return CallableKernel(self.library, name, struct)
