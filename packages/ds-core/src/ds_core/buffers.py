"""Buffers: large host buffers that are used again, rather than mapped and cleared anew in every step.

The kernel clears a page before a process sees it, which for buffers that live for a few milliseconds costs as much as
filling them. Devices have caching allocators of their own, so only host memory is kept here, and little of it.

Note [Only what nobody else sees]
    A buffer is kept only when its memory has no other tensor: a view that autograd or a program still holds keeps the
    memory to itself, and the buffer is forgotten instead.
"""

from __future__ import annotations

import torch

from ds_core.accelerator.host_memory import empty_on_large_pages

__all__ = ["clear", "empty", "give", "take", "take_like"]

MINIMUM_BYTES = 1 << 20
KEPT = 2
"""Buffers kept at most; the smallest are forgotten first."""

_KEPT: list[torch.Tensor] = []
_count = getattr(torch._C, "_storage_Use_Count", None)


def take(numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised 1-D tensor."""
    needed = numel * dtype.itemsize
    if device.type == "cpu" and needed >= MINIMUM_BYTES:
        for place, raw in enumerate(_KEPT):
            if raw.numel() == needed:
                del _KEPT[place]
                return raw.view(dtype)
    return empty(numel, dtype, device)


def empty(numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised 1-D tensor to keep: large pages where it is large and the host's."""
    if device.type != "cpu":
        return torch.empty(numel, dtype=dtype, device=device)
    return empty_on_large_pages(numel, dtype)


def take_like(tensor: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor like a 1-D one; of its own kind where its memory is not the host's."""
    if tensor.device.type != "cpu":
        return torch.empty_like(tensor)
    return take(tensor.numel(), tensor.dtype, tensor.device)


def give(tensor: torch.Tensor) -> None:
    """Hands a tensor that `take` gave back; the caller uses it no more. See Note [Only what nobody else sees]."""
    if tensor.device.type != "cpu" or _count is None:
        return
    storage = tensor.untyped_storage()
    if storage.nbytes() < MINIMUM_BYTES or _count(storage._cdata) > 2:  # this tensor, and `storage`
        return
    _KEPT.append(torch.empty(0, dtype=torch.uint8).set_(storage))
    _KEPT.sort(key=torch.Tensor.numel)
    del _KEPT[: len(_KEPT) - KEPT]


def clear() -> None:
    """Forgets all kept buffers."""
    _KEPT.clear()
