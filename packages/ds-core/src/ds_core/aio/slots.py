"""Where named tensors lie in a store's file: a pure plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ds_core.aio.memory import round_up

__all__ = ["Slot", "is_adjacent", "plan_slots"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes of a file that belong to one tensor; they start on a block boundary."""

    offset_bytes: int
    nbytes: int

    @property
    def end_bytes(self) -> int:
        """Where the next slot may begin: the end of this one's last block."""
        return self.offset_bytes + round_up(self.nbytes)


def plan_slots(sizes: Mapping[str, int], start_bytes: int = 0) -> dict[str, Slot]:
    """A slot for each name, in the order given, next to each other from `start_bytes` (a block boundary) on."""
    slots = {}
    for name, nbytes in sizes.items():
        slots[name] = Slot(start_bytes, nbytes)
        start_bytes = slots[name].end_bytes
    return slots


def is_adjacent(slots: Sequence[Slot]) -> bool:
    """Whether each slot begins where the one before ends."""
    return all(one.end_bytes == other.offset_bytes for one, other in pairwise(slots))
