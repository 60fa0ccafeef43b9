"""The exchange: when the gradients of each bucket meet those of other ranks, and in which order.

Note [One order on all ranks]
    Every rank reduces every bucket once per exchanged backward, in one order, whatever its own graph did: a bucket is
    launched when it and all before it are complete, and what never completes is launched, zero, at the end. So ranks
    that took different branches still meet in the same collectives. The order starts as reverse registration order;
    after the first exchanged step all ranks take the order in which rank 0's buckets completed.

Note [Complete]
    A bucket is complete when every parameter of it that ever received a gradient on this rank has one in this
    backward. A gradient that arrives after that (a parameter accumulated twice by re-entrant recomputation) waits in a
    fresh buffer; at the step ranks tell each other which buckets have such, and reduce those again.

Note [When to wait]
    To bound memory a rank waits for old reductions before it launches more. That is safe while all ranks run through
    the same collectives in one order. Where they may not (a sharded model whose branches depend on data), another rank
    may need this one for a gather first; `may_wait` then says no, and reductions are waited for when backward is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from ds_core import buffers, comm

if TYPE_CHECKING:
    from ds_core.flat import FlatGroup

__all__ = ["Exchange", "Reduced", "Reducer"]

IN_FLIGHT = 2
"""Reductions under way at most; each holds a whole bucket in memory."""


class Reduced(NamedTuple):
    """A reduction under way.

    Attributes:
        tensor: where its result will be.
        start: the flat element it begins at.
        handle: what to wait for; None when it is there.
        is_part: `tensor` is part of a larger one that need not be kept.
    """

    tensor: torch.Tensor
    start: int
    handle: Any
    is_part: bool = False


class Reducer(Protocol):
    """Sums one bucket over ranks. Called on all ranks for the same bucket."""

    def reduce_bucket(self, flat: FlatGroup, index: int, piece: torch.Tensor, async_op: bool) -> Reduced:
        """Sums `piece`, the gradients of bucket `index`; `piece` may be used for the result."""


class _Entry:
    """One bucket's state in the exchange."""

    __slots__ = ("awaited", "ever", "flat", "index", "is_late", "launched", "place", "slots")

    def __init__(self, flat: FlatGroup, index: int, place: int, *, is_late: bool = False) -> None:
        bucket = flat.layout.buckets[index]
        self.flat = flat
        self.index = index
        self.place = place
        self.slots: frozenset[int] = frozenset(range(bucket.first, bucket.last))
        self.ever: set[int] = set()
        self.awaited: set[int] = set()
        self.launched = False
        self.is_late = is_late

    @property
    def is_due(self) -> bool:
        """Whether it holds gradients that were not taken, or never had any."""
        gradients = self.flat.gradients
        return gradients.has_incoming(self.index) or not gradients.is_reduced(self.index)


class Exchange:
    """Reduces buckets as they complete, or all at once at the step.

    Args:
        flats: trainable groups.
        reducer: the collective.
        ranks: of the batch, who go through the same buckets, each with the replicas of its own.
        group: of them.
        scale: what gradients are multiplied by before they meet.
        overlap: launch without waiting.
        late: ids of the groups that meet only when a step ends; see Note [Late groups] in `ds_core.holdings`.
        on_complete: told of each bucket whose gradients of a backward are complete; its parameters are not needed any
            more.

    Attributes:
        takes_alone: one rank too takes gradients as they come, because they are kept elsewhere.
        may_wait: whether a rank may wait for a reduction while backward goes on; see Note [When to wait].
    """

    def __init__(
        self,
        flats: list[FlatGroup],
        reducer: Reducer,
        *,
        ranks: int,
        group: Any = None,
        scale: float = 1.0,
        overlap: bool = False,
        late: frozenset[int] = frozenset(),
        on_complete: Callable[[FlatGroup, int], None] | None = None,
    ) -> None:
        self._reducer = reducer
        self._ranks = ranks
        self._group = group
        self._scale = scale
        self._overlap = overlap
        self.on_complete = on_complete
        self.may_wait: Callable[[], bool] = lambda: True
        self.takes_alone: bool = False
        self._entries = _in_reverse([flat for flat in flats if id(flat) not in late])
        self._late_entries = _in_reverse([flat for flat in flats if id(flat) in late], in_order=True)
        self._by_bucket = {(id(e.flat), e.index): e for e in (*self._entries, *self._late_entries)}
        self._cursor = 0
        self._active = False
        self._has_unmet = False
        self._exchanged = False
        self._is_ordered = False
        self._completed: list[int] = []
        self._under_way: list[tuple[_Entry, Reduced, torch.Tensor]] = []
        for flat in flats:
            flat.gradients.on_arrival = self._arrived

    def begin(self, exchange: bool) -> None:
        """A backward starts. `exchange`: its gradients meet as they come; else they wait for a later one's."""
        for flat in {key: entry.flat for (key, _), entry in self._by_bucket.items()}.values():
            flat.gradients.hide()
        self._active = exchange and (self._ranks > 1 or self.takes_alone)
        if not self._is_watching:
            return
        self._cursor = 0
        for entry in self._entries:
            entry.launched = False
            entry.awaited = set(entry.ever or entry.slots)

    @property
    def _is_watching(self) -> bool:
        return self._active or self.on_complete is not None

    def _arrived(self, flat: FlatGroup, index: int, slot: int) -> None:
        entry = self._by_bucket[id(flat), index]
        entry.ever.add(slot)
        if not self._is_watching or entry.is_late:
            return
        entry.awaited.discard(slot)
        if entry.awaited or entry.launched:
            return
        if self.on_complete is not None:
            self.on_complete(flat, index)
        if not self._active:
            return
        if not self._is_ordered and entry.place not in self._completed:
            self._completed.append(entry.place)
        while self._cursor < len(self._entries) and not self._entries[self._cursor].awaited:
            self._launch(self._entries[self._cursor])
            self._cursor += 1

    def end(self) -> None:
        """The backward is over: launches what never completed and waits for all. Called on all ranks."""
        if not self._active:
            self._has_unmet = True
            return
        while self._cursor < len(self._entries):
            self._launch(self._entries[self._cursor])
            self._cursor += 1
        self._active = False
        self._drain(0)
        self._has_unmet = False
        self._exchanged = True

    @property
    def is_pending(self) -> bool:
        """Whether there was a backward since gradients were forgotten or `finish` was called."""
        return self._has_unmet or self._exchanged

    def finish(self) -> None:
        """Brings together whatever has not met yet. Called on all ranks, once, before gradients are used."""
        if self._ranks == 1:
            due = [entry for entry in self._entries if entry.is_due]
        elif self._has_unmet or not self._exchanged:
            due = self._entries
        else:
            due = self._missed()
        for entry in (*due, *self._late_entries):
            self._launch(entry)
        self._drain(0)
        self._has_unmet = self._exchanged = False

    def reset(self) -> None:
        """Gradients were forgotten."""
        self._has_unmet = self._exchanged = False

    def _missed(self) -> list[_Entry]:
        """Buckets in which some rank holds gradients that came after the reduction; and, once, the order to take."""
        if not self._entries:
            return []
        mine = [int(e.flat.gradients.has_incoming(e.index)) for e in self._entries]
        if not self._is_ordered:
            with comm.scope("gradient order"):
                first = comm.gather_json({"late": mine, "order": self._completed}, group=self._group)
            flags = [any(row["late"][i] for row in first) for i in range(len(mine))]
            late = [entry for entry, is_late in zip(self._entries, flags, strict=True) if is_late]
            self._take_order(first[0]["order"])
            return late
        payload = torch.tensor(mine, dtype=torch.uint8, device=self._entries[0].flat.device)
        table = torch.empty(self._ranks * len(mine), dtype=torch.uint8, device=payload.device)
        with comm.scope("gradient order"):
            comm.all_gather_into_tensor(table, payload, group=self._group)
        flags = table.view(self._ranks, -1).amax(dim=0).bool().tolist()
        return [entry for entry, is_late in zip(self._entries, flags, strict=True) if is_late]

    def _take_order(self, places: list[int]) -> None:
        rank = {place: at for at, place in enumerate(places)}
        self._entries.sort(key=lambda entry: rank.get(entry.place, len(rank)))
        self._is_ordered = True

    def _launch(self, entry: _Entry) -> None:
        entry.launched = True
        flat = entry.flat
        piece = flat.gradients.take(entry.index)
        if self._scale != 1.0:
            piece.mul_(self._scale)
        if flat.replicas.ranks == 1:
            flat.gradients.put(entry.index, piece, flat.layout.buckets[entry.index].start)
            return
        wanted = flat.reduce_dtype or piece.dtype
        with comm.scope("gradients"):
            async_op = self._overlap or not self.may_wait()
            reduced = self._reducer.reduce_bucket(flat, entry.index, piece.to(wanted), async_op)
        self._under_way.append((entry, reduced, piece))
        del piece
        self._drain(IN_FLIGHT if async_op else 0)

    def _drain(self, allowed: int) -> None:
        while len(self._under_way) > allowed:
            entry, reduced, piece = self._under_way[0]
            is_last = allowed == 0 and not self._active
            if not is_last and not self.may_wait() and reduced.handle is not None and not reduced.handle.is_completed():
                return
            self._under_way.pop(0)
            if reduced.handle is not None:
                reduced.handle.wait()
            result = reduced.tensor.clone() if reduced.is_part else reduced.tensor
            is_result = result.untyped_storage()._cdata == piece.untyped_storage()._cdata
            entry.flat.gradients.put(entry.index, result.to(entry.flat.grad_dtype), reduced.start)
            del reduced, result
            if not is_result:
                buffers.give(piece)


def _in_reverse(flats: list[FlatGroup], *, in_order: bool = False) -> list[_Entry]:
    """Buckets as backward is likely to complete them: last unit first, but the unit of small parameters at the end.

    `in_order`: as they come; they are not reduced while backward runs.
    """
    if in_order:
        pairs = [(flat, index) for flat in flats for index in range(len(flat.layout.buckets))]
        return [_Entry(flat, index, number, is_late=True) for number, (flat, index) in enumerate(pairs)]
    found = [(flat, index) for flat in flats for index in range(len(flat.layout.buckets))]
    small = max((flat.layout.buckets[index].unit for flat, index in found), default=0)

    def place(item: tuple[FlatGroup, int]) -> tuple[bool, int]:
        bucket = item[0].layout.buckets[item[1]]
        return bucket.unit == small > 0, -bucket.unit

    found.reverse()
    ordered = sorted(found, key=place)
    return [_Entry(flat, index, number) for number, (flat, index) in enumerate(ordered)]
