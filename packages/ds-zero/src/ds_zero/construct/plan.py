"""Which recorded steps must run for some cells, in which order, and when each byte can be freed. Pure; runs nothing.

Note [Buffers]: a cell that is overwritten whole holds two unrelated contents one after the other. Each content is a
buffer of its own here, so the first one (and all that only led to it) is dead as soon as its last reader has run, and a
model that initialises its weights twice never needs two of anything. Steps that draw random numbers run even when
their result is dead, on a scratch buffer, because the next draw depends on it.

Note [Order]: random steps keep their order. A step that draws nothing runs right after the last step it depends on, so
a cast or a scaling at the very end of a constructor does not keep the whole model waiting for it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ds_zero.construct.steps import Log, Step

__all__ = ["Action", "Plan", "plan"]


@dataclass(frozen=True, slots=True)
class Action:
    """Run step `step` with each cell bound to a buffer; then hand over `ready` cells; then drop `free` buffers."""

    step: int
    binding: Mapping[int, int]
    fresh: frozenset[int]
    ready: tuple[int, ...]
    free: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in order. `final` is the buffer that holds each wanted cell's last content, `owner` each buffer's cell.

    `untouched` are wanted cells that no step writes: what they hold is what they held before.
    """

    actions: tuple[Action, ...]
    final: Mapping[int, int]
    owner: tuple[int, ...]
    untouched: tuple[int, ...]
    written: frozenset[int]


def plan(log: Log, wanted: Iterable[int], first_random: int) -> Plan:
    """The plan that computes what the `wanted` cells hold after the last step of `log`.

    Args:
        first_random: every random step from this index on runs, needed or not; earlier ones only if needed.
    """
    wanted = list(dict.fromkeys(wanted))
    chosen = _chosen(log, wanted, first_random)
    buffers = _Buffers(log)
    for index in chosen:
        buffers.add(index, log.steps[index])
    final = {cell: buffers.current[cell] for cell in wanted if cell in buffers.current}
    order = _order(log, chosen, buffers.after)
    actions = _lifetimes(order, buffers, {buffer: cell for cell, buffer in final.items()})
    ready = {cell for action in actions for cell in action.ready}
    untouched = tuple(cell for cell in wanted if cell not in ready)
    return Plan(actions, final, tuple(buffers.owner), untouched, frozenset(buffers.written))


def _chosen(log: Log, wanted: list[int], first_random: int) -> list[int]:
    """Indices, ascending, of the steps that wanted contents depend on, and of the random steps that run anyway."""
    heap: list[int] = []  # negative indices: the last step first, when all that depends on it has been seen
    contents: dict[int, set[int]] = {}  # step -> cells whose content after it is needed

    def need(cell: int, before: int) -> None:
        at = bisect_left(log.writers[cell], before) - 1
        if at >= 0:
            index = log.writers[cell][at]
            if index not in contents:
                contents[index] = set()
                heapq.heappush(heap, -index)
            contents[index].add(cell)

    for cell in wanted:
        need(cell, len(log.steps))
    for index in log.randoms[bisect_left(log.randoms, first_random) :]:
        if index not in contents:
            contents[index] = set()
            heapq.heappush(heap, -index)
    chosen = []
    while heap:
        index = -heapq.heappop(heap)
        step = log.steps[index]
        chosen.append(index)
        for cell in step.reads:
            need(cell, index)
        for ref in step.writes:
            if not step.kills(ref, log.cells) and (ref.cell in contents[index] or not step.blind):
                need(ref.cell, index)
    return chosen[::-1]


class _Buffers:
    """Gives every content a buffer, and every step the steps it must come after."""

    def __init__(self, log: Log) -> None:
        self._log: Log = log
        self.owner: list[int] = []
        self.current: dict[int, int] = {}
        self.bindings: dict[int, dict[int, int]] = {}
        self.fresh: dict[int, frozenset[int]] = {}
        self.writes: dict[int, set[int]] = {}
        self.after: dict[int, set[int]] = {}
        self.written: set[int] = set()
        self._writer: dict[int, int] = {}
        self._readers: dict[int, list[int]] = {}
        self._random: int | None = None

    def _new(self, cell: int) -> int:
        self.owner.append(cell)
        self.current[cell] = len(self.owner) - 1
        return self.current[cell]

    def add(self, index: int, step: Step) -> None:
        binding: dict[int, int] = {}
        after: set[int] = set()
        for cell in step.reads:
            buffer = self.current[cell] if cell in self.current else self._new(cell)
            binding[cell] = buffer
            after.update({self._writer[buffer]} if buffer in self._writer else ())
            self._readers.setdefault(buffer, []).append(index)
        writes = set()
        for ref in step.writes:
            if step.kills(ref, self._log.cells) or ref.cell not in self.current:
                buffer = self._new(ref.cell)
            else:
                buffer = self.current[ref.cell]
            binding[ref.cell] = buffer
            after.update(self._readers.pop(buffer, ()))
            after.update({self._writer[buffer]} if buffer in self._writer else ())
            writes.add(buffer)
        outs = {ref.cell: self._new(ref.cell) for ref in step.outs if ref is not None}
        writes.update(outs.values())
        self._writer.update(dict.fromkeys(writes, index))
        self.written.update(writes)
        if step.random:
            after.update(() if self._random is None else {self._random})
            self._random = index
        self.bindings[index] = binding | outs
        self.fresh[index] = frozenset(outs.values())
        self.writes[index] = writes
        self.after[index] = after - {index}


def _order(log: Log, chosen: list[int], after: dict[int, set[int]]) -> list[int]:
    """The order of Note [Order]."""
    waiting = {index: len(after[index]) for index in chosen}
    followers: dict[int, list[int]] = {}
    for index in chosen:
        for earlier in after[index]:
            followers.setdefault(earlier, []).append(index)
    order: list[int] = []
    done: set[int] = set()
    for index in chosen:
        stack = [] if index in done else [index]
        while stack:
            step = stack.pop()
            order.append(step)
            done.add(step)
            ready = []
            for follower in followers.get(step, ()):
                waiting[follower] -= 1
                if not waiting[follower] and not log.steps[follower].random:
                    ready.append(follower)
            stack.extend(reversed(ready))
    return order


def _lifetimes(order: list[int], buffers: _Buffers, final: dict[int, int]) -> tuple[Action, ...]:
    """One action a step, with what is complete and what is dead after it."""
    last_use = {buffer: at for at, index in enumerate(order) for buffer in buffers.bindings[index].values()}
    last_write = {buffer: at for at, index in enumerate(order) for buffer in buffers.writes[index]}
    actions = []
    for at, index in enumerate(order):
        binding = buffers.bindings[index]
        touched = list(dict.fromkeys(binding.values()))
        ready = tuple(final[buffer] for buffer in touched if buffer in final and last_write.get(buffer) == at)
        free = tuple(buffer for buffer in touched if last_use[buffer] == at)
        actions.append(Action(index, binding, buffers.fresh[index], ready, free))
    return tuple(actions)
