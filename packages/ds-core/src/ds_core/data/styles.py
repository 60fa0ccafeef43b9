"""The two kinds of data set: one that is indexed, and one that is only read through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeGuard, runtime_checkable

from torch.utils.data import IterableDataset

__all__ = ["MapStyle", "is_iterable_style_dataset", "is_map_style_dataset"]


@runtime_checkable
class MapStyle(Protocol):
    """Has a length and gives sample i."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def is_map_style_dataset(dataset: object) -> TypeGuard[MapStyle]:
    """Whether samples are had by index. Torch's IterableDataset is not, although it inherits ``__getitem__``."""
    return isinstance(dataset, MapStyle) and not isinstance(dataset, IterableDataset)


def is_iterable_style_dataset(dataset: object) -> TypeGuard[Iterable[Any]]:
    """Whether samples can only be read in the order in which they come."""
    return isinstance(dataset, Iterable) and not is_map_style_dataset(dataset)
