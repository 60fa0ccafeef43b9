"""A kernel of a loaded library, called with the fields of its argument struct by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ds_core.errors import OpError
from ds_core.ops.arguments import argument_struct
from ds_core.ops.native import DTYPE_CODES, Kernel, KernelLibrary

__all__ = ["CallableKernel", "Kernels", "Launcher", "Run", "address", "code", "row_view"]

_CODE = {getattr(torch, name): value for name, value in DTYPE_CODES.items()}

Run = Callable[[bytes, torch.device], None]
"""Runs a kernel on a packed argument struct, for tensors of a device."""


class Launcher(Protocol):
    """How the kernels of a library are run: with which threads, on which stream, with what workspace."""

    def bind(self, kernel: Kernel) -> Run:
        """What runs `kernel`.

        It raises `IndexError` when an index names no row (nothing was written then) and `RuntimeError` when the kernel
        refuses the call for another reason.
        """


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
        launcher: how it is run.
        name: of the row.
        struct: the argument struct; by default ``ds_<name>_args`` without a trailing underscore of the name.
    """

    __slots__ = ("_pack", "_run")

    def __init__(self, library: KernelLibrary, launcher: Launcher, name: str, struct: str | None = None) -> None:
        found = library.kernels.get(name)
        self._run: Run = _missing(library, name) if found is None else launcher.bind(found)
        self._pack = argument_struct(struct or f"ds_{name.rstrip('_')}_args")

    def __call__(self, device: torch.device, /, **arguments: Any) -> None:
        """Runs it for tensors of `device`.

        Raises:
            IndexError: an index tensor names a row that is not there; nothing was written.
            OpError: the library has no such row.
            RuntimeError: the kernel refused the arguments.
        """
        self._run(self._pack(**arguments), device)


class Kernels:
    """Base of the families of ops.

    Args:
        library: loaded and checked.
        launcher: how its kernels are run.
    """

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        self.library = library
        self.launcher = launcher

    def kernel(self, name: str, struct: str | None = None) -> CallableKernel:
        """A row of the library, ready to call."""
        return CallableKernel(self.library, self.launcher, name, struct)


def _missing(library: KernelLibrary, name: str) -> Run:
    def run(packed: bytes, device: torch.device) -> None:
        raise OpError(
            f"kernel library {library.path} ({library.target}) has no row {name!r} in its op table; it has "
            f"{', '.join(library.kernels) or 'none'}. The wheel that brings it must not list the op in ds_ops."
        )

    return run
