"""`OnDevice`: construct modules on a device and in a dtype."""

from __future__ import annotations

from types import TracebackType

import torch

__all__ = ["OnDevice"]


class OnDevice:
    """A context in which tensors are made on `device`, floating-point ones in `dtype`.

    Args:
        dtype: default dtype inside.
        device: where to; ``"meta"`` makes shapes without memory.
        enabled: False changes nothing.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "meta", enabled: bool = True) -> None:
        self._dtype: torch.dtype = dtype
        self._device: torch.device = torch.device(device)
        self._enabled: bool = enabled
        self._before: torch.dtype | None = None

    def __enter__(self) -> OnDevice:
        """Begins."""
        if self._enabled:
            self._before = torch.get_default_dtype()
            torch.set_default_dtype(self._dtype)
            self._device.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; the default dtype is what it was."""
        if self._before is not None:
            self._device.__exit__(kind, error, trace)
            torch.set_default_dtype(self._before)
            self._before = None
