"""What a checkpoint holds, as data: fragments of logical tensors and small JSON values.

A part names its tensors logically (``optimizer/exp_avg/blocks.0.weight``) with their unsharded shape, and says which
flat range of each this rank holds. How fragments reach a disk, and who reads which, is the checkpoint's business; so
any number of ranks can load what any other number wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

__all__ = ["Deferred", "Fragment", "NumbersStates", "StatePlan", "StateReader"]


class Deferred(NamedTuple):
    """A 1-D tensor that is not in memory.

    Attributes:
        dtype: of its elements.
        load: elements ``start <= i < stop`` of it; good until the next call of any.
    """

    dtype: torch.dtype
    load: Callable[[int, int], torch.Tensor]


class Fragment(NamedTuple):
    """Elements ``start <= i < stop`` of the logical tensor `key`, flattened in row-major order.

    Attributes:
        key: logical name, unique in the checkpoint.
        shape: shape of the whole logical tensor.
        start: first flat element held.
        stop: one past the last flat element held.
        tensor: 1-D, ``stop - start`` elements; not copied until it is written, nor loaded until then if it is deferred.
        offset: element of a deferred `tensor` at which this fragment begins.
    """

    key: str
    shape: tuple[int, ...]
    start: int
    stop: int
    tensor: torch.Tensor | Deferred
    offset: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return self.tensor.dtype

    def values(self) -> torch.Tensor:
        """The elements, 1-D; of a deferred tensor good until the next call of any fragment's."""
        if isinstance(self.tensor, Deferred):
            return self.tensor.load(self.offset, self.offset + self.stop - self.start)
        return self.tensor


@dataclass(slots=True)
class StatePlan:
    """What one rank contributes: fragments (no element twice over all ranks) and JSON values (merged in rank order)."""

    fragments: list[Fragment] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


class StateReader(Protocol):
    """Reads a checkpoint by logical names, whatever number of ranks wrote it.

    Parameters and buffers go by the names of the module they are loaded into, whatever the checkpoint calls them.
    """

    @property
    def unclaimed(self) -> Sequence[str]:
        """Names of parameters and buffers that the checkpoint has and the module has not."""

    def may_lack(self, name: str) -> bool:
        """Whether the checkpoint may lack this parameter or buffer of the module, which then stays as it is."""

    def may_have(self, name: str) -> bool:
        """Whether the checkpoint may have this parameter or buffer, which nobody takes."""

    def keys(self) -> Sequence[str]:
        """Names of all logical tensors."""

    def shape(self, key: str) -> tuple[int, ...]:
        """Logical shape of `key`."""

    def dtype(self, key: str) -> torch.dtype:
        """The dtype `key` was saved in."""

    def read(self, key: str, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements ``start <= i < start + out.numel()`` of `key`, cast to out's dtype."""

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value saved under `name`."""


@runtime_checkable
class NumbersStates(Protocol):
    """A `StateReader` of a format that numbers optimizer states; whose they are, the engine that loads them says."""

    def name_parameters(self, groups: Sequence[Sequence[str]]) -> None:
        """Names the parameters of each optimizer group, in its order. Called before optimizer states are read."""
