"""Tensors in nested containers: move them, copy them out of larger storages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["clone_tensors_for_torch_save", "copy_to_device", "move_to_device"]


def _mapped(item: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`item` with every tensor changed; containers are new and of their own kinds, other values are the same."""
    if isinstance(item, torch.Tensor):
        return change(item)
    if isinstance(item, Mapping):
        changed = {key: _mapped(value, change) for key, value in item.items()}
        return changed if type(item) is dict else type(item)(changed)  # type: ignore[call-arg] # as dict's own
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(_mapped(value, change) for value in item))
    if isinstance(item, list | tuple):
        return type(item)(_mapped(value, change) for value in item)
    return item


def clone_tensors_for_torch_save(item: Any, device: torch.device | str | None = "cpu") -> Any:
    """`item` whose tensors are detached copies on `device` that own no more storage than they show.

    A view of a flat buffer would take the whole buffer with it into ``torch.save``. None keeps each tensor's device.
    """
    return _mapped(item, lambda tensor: tensor.detach().to(device or tensor.device, copy=True))


def move_to_device(
    item: Any, device: torch.device | str, criterion_func: Callable[[torch.Tensor], bool] | None = None
) -> Any:
    """`item` whose tensors are on `device`; those for which `criterion_func` is false stay where they are."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device) if criterion_func is None or criterion_func(tensor) else tensor

    return _mapped(item, change)


def copy_to_device(item: Any, device: torch.device | str, criterion_func: Callable[[torch.Tensor], bool]) -> Any:
    """As `move_to_device`, and what is moved is a detached copy even where it is on `device` already."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device, copy=True) if criterion_func(tensor) else tensor

    return _mapped(item, change)
