"""Plans of gathers: in which order a pass gathers its units, and what it holds on to in between. Pure.

Note [One order of gathers]
    All ranks follow one plan per kind of pass, each at its own pace: to use a unit, a rank gathers everything up to
    its place in the plan. A rank that skips a unit (a branch it did not take) still takes part in its gather, on its
    way to the next or when its pass ends, so that branches may depend on data. What the plan did not foresee is
    requested in a control round, which every rank holds once it is done with the pass. A plan starts as registration
    order; a pass that all ranks went through alike becomes the plan of the next one of its kind.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["GatherPlan", "digest", "make_plan"]


def digest(uses: Sequence[int]) -> int:
    """A checksum of an order of units, equal on ranks with equal orders."""
    return zlib.crc32(",".join(map(str, uses)).encode())


@dataclass(frozen=True, slots=True)
class GatherPlan:
    """What a pass uses and gathers.

    Attributes:
        uses: unit indices in the order they are used.
        order: unit indices in the order they are gathered: `uses` without those that find their unit still whole.
        holds: positions in `uses` after which the unit stays whole until its next use.
        is_observed: the order of an actual pass, rather than a guess.
    """

    uses: tuple[int, ...]
    order: tuple[int, ...]
    holds: frozenset[int]
    is_observed: bool

    def find(self, unit: int, start: int) -> int | None:
        """The first place of `unit` in `order` at `start` or later."""
        try:
            return self.order.index(unit, start)
        except ValueError:
            return None

    def use(self, unit: int, start: int) -> int | None:
        """The first position of `unit` in `uses` at `start` or later."""
        try:
            return self.uses.index(unit, start)
        except ValueError:
            return None

    def backward(self) -> tuple[int, ...]:
        """Uses of the pass that goes the other way: each unit once, where its last use here was."""
        return tuple(dict.fromkeys(reversed(self.uses)))

    def kept(self, sizes: Mapping[int, int], reuse_numel: int) -> tuple[int, ...]:
        """Units to keep whole at the end of this pass for the one that goes the other way.

        Args:
            sizes: elements of each unit.
            reuse_numel: a unit is kept when fewer elements than this are used between its last use here and its next.
        """
        kept, between = [], 0
        for unit in self.backward():
            if 2 * between >= reuse_numel:
                break
            kept.append(unit)
            between += sizes[unit]
        return tuple(kept)

    def inserted(self, requests: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """`uses` with every (unit, unit before it or -1) that some rank had to request."""
        uses = list(self.uses)
        for unit, before in requests:
            uses.insert(uses.index(before) + 1 if before in uses else 0, unit)
        return tuple(uses)


def make_plan(
    uses: Sequence[int], sizes: Mapping[int, int], *, reuse_numel: int = 0, is_observed: bool = False
) -> GatherPlan:
    """The plan for a pass that uses units in this order.

    Args:
        uses: unit indices.
        sizes: elements of each unit.
        reuse_numel: a unit stays whole between two uses with no more than this many elements of others in between.
        is_observed: see `GatherPlan`.
    """
    last: dict[int, int] = {}
    totals = [0]
    for unit in uses:
        totals.append(totals[-1] + sizes[unit])
    order, holds = [], set()
    for position, unit in enumerate(uses):
        before = last.get(unit)
        last[unit] = position
        if before is not None and totals[position] - totals[before + 1] <= reuse_numel:
            holds.add(before)
        else:
            order.append(unit)
    return GatherPlan(tuple(uses), tuple(order), frozenset(holds), is_observed)
