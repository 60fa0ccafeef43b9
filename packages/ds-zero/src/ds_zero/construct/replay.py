"""Runs recorded steps with real tensors, one content at a time, and drops each as early as its plan allows."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import torch

from ds_zero.construct.plan import Plan
from ds_zero.construct.rng import Back, Change, States, snapshot
from ds_zero.construct.steps import Blank, Cell, Log, Ref, Step, map_tensors

__all__ = ["run"]

_MAPPED_FROM_BYTES = 1 << 20


def run(log: Log, plan: Plan, draws: int, states: dict[int, States]) -> Iterator[tuple[int, torch.UntypedStorage]]:
    """Carry out `plan`; yield each wanted cell with the storage that holds its last content, as soon as it is complete.

    The storage is dropped when no later step reads it: take what you need before asking for the next one.

    Args:
        draws: how many random steps of the log the generators are past when this begins.
        states: states of the generators by number of draws, for steps that go back to one; those needed are added.
    """
    runner = _Runner(log, plan, states)
    runner.save_state(draws)
    for cell in plan.untouched:
        yield cell, runner.initial(log.cells[cell], writable=False)
    for action in plan.actions:
        runner.step(log.steps[action.step], action.binding)
        runner.save_state_after(action.step)
        for cell in action.ready:
            yield cell, runner.buffers[plan.final[cell]]
        for buffer in action.free:
            runner.buffers.pop(buffer, None)


class _Runner:
    """The buffers that hold bytes now."""

    def __init__(self, log: Log, plan: Plan, states: dict[int, States]) -> None:
        self.buffers: dict[int, torch.UntypedStorage] = {}
        self._log: Log = log
        self._plan: Plan = plan
        self._states: dict[int, States] = states
        goals = [
            log.steps[action.step].args[0] for action in plan.actions if log.steps[action.step].run is change_state
        ]
        self._returns: frozenset[int] = frozenset(goal.draws for goal in goals if isinstance(goal, Back))

    def initial(self, cell: Cell, *, writable: bool) -> torch.UntypedStorage:
        """What a cell holds before any step wrote it: real bytes of a tensor that had some, else zeros."""
        if cell.base is None:
            return torch.zeros(cell.nbytes, dtype=torch.uint8, device=cell.device).untyped_storage()
        return cell.base.clone() if writable else cell.base

    def save_state(self, draws: int) -> None:
        if draws in self._returns:
            self._states[draws] = snapshot(self._log.generators)

    def save_state_after(self, index: int) -> None:
        if self._returns and self._log.steps[index].random:
            self.save_state(bisect_right(self._log.randoms, index))

    def step(self, step: Step, binding: Any) -> None:
        """Run one step on the buffers `binding` gives its cells."""
        if step.run is change_state:
            change_state(step.args[0], self._states)
            return
        args, kwargs = self._decode(step.args, binding), self._decode(step.kwargs, binding)
        before = torch.get_default_dtype()
        torch.set_default_dtype(step.default_dtype)
        try:
            with torch.no_grad():
                results = step.run(*args, **kwargs)
        finally:
            torch.set_default_dtype(before)
        results = results if isinstance(results, (list, tuple)) else (results,)
        for ref, result in zip(step.outs, results, strict=False):
            if ref is not None:
                self.buffers[binding[ref.cell]] = self._own(ref, result, binding)

    def _decode(self, value: Any, binding: Any) -> Any:
        def tensor(ref: Ref | Blank) -> torch.Tensor:
            if isinstance(ref, Blank):
                blank = ref.ref
                return torch.empty_strided(blank.size, blank.stride, dtype=blank.dtype, device="meta")
            return ref.on(self._buffer(binding[ref.cell]))

        return map_tensors(tensor, value, (Ref, Blank))

    def _buffer(self, buffer: int) -> torch.UntypedStorage:
        if buffer not in self.buffers:
            cell = self._log.cells[self._plan.owner[buffer]]
            if cell.base is None:
                self.buffers[buffer] = _memory(cell.nbytes, cell.device)
            else:
                self.buffers[buffer] = self.initial(cell, writable=buffer in self._plan.written)
        return self.buffers[buffer]

    def _own(self, ref: Ref, result: torch.Tensor, binding: Any) -> torch.UntypedStorage:
        """The storage of a result, laid out as the recording promised and shared with nothing that outlives it."""
        result = result.resolve_conj().resolve_neg()
        same = tuple(result.stride()) == ref.stride and result.storage_offset() == ref.offset
        storage = result.untyped_storage()
        shared = any(storage._cdata == self.buffers[b]._cdata for b in binding.values() if b in self.buffers)
        if same and not shared:
            return storage
        mine = _memory(self._log.cells[ref.cell].nbytes, result.device)
        ref.on(mine).copy_(result)
        return mine


def change_state(change: Change, states: dict[int, States]) -> None:
    """Do to a generator what the constructor did."""
    change.apply(states)


def _memory(nbytes: int, device: torch.device) -> torch.UntypedStorage:
    """New bytes. Large ones on the host are mapped for themselves: freed pages of glibc's aligned allocations often
    stay with the process, several times the largest parameter over a whole model."""
    if device.type != "cpu" or nbytes < _MAPPED_FROM_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(nbytes, dtype=torch.uint8, device=device).untyped_storage()
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()
