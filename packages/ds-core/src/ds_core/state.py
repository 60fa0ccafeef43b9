"""What a checkpoint holds, as data: fragments of logical tensors and small JSON values.

A part names its tensors logically (``optimizer/exp_avg/blocks.0.weight``) with their unsharded shape, and says which
flat range of each this rank holds. How fragments reach a disk, and who reads which, is the checkpoint's business; so
any number of ranks can load what any other number wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["Fragment", "StatePlan", "StateReader"]


class Fragment(NamedTuple):
    """Elements ``start <= i < stop`` of the logical tensor `key`, flattened in row-major order.

    Attributes:
        key: logical name, unique in the checkpoint.
        shape: shape of the whole logical tensor.
        start: first flat element held.
        stop: one past the last flat element held.
        tensor: 1-D, ``stop - start`` elements; not copied until it is written.
    """

    key: str
    shape: tuple[int, ...]
    start: int
    stop: int
    tensor: torch.Tensor


@dataclass(slots=True)
class StatePlan:
    """What one rank contributes: fragments (no element twice over all ranks) and JSON values (merged in rank order)."""

    fragments: list[Fragment] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


class StateReader(Protocol):
    """Reads a checkpoint by logical names, whatever number of ranks wrote it."""

    strict: bool
    """False lets parts keep what they have where the checkpoint has nothing."""

    def keys(self) -> Sequence[str]:
        """Names of all logical tensors."""

    def shape(self, key: str) -> tuple[int, ...]:
        """Logical shape of `key`."""

    def read(self, key: str, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements ``start <= i < start + out.numel()`` of `key`, cast to out's dtype."""

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value saved under `name`."""
