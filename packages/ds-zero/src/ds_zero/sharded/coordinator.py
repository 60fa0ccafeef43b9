"""The coordinator: decides when each unit is gathered and released, by plan, by need, or by request.

A pass is one forward of the root module or one backward. See Note [One order of gathers] in `order`.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from typing import NamedTuple

from ds_core.errors import EngineError
from ds_zero.sharded.control import Control, Message, Posted, Word
from ds_zero.sharded.order import GatherPlan, digest, make_plan
from ds_zero.sharded.unit import GatherUnit, UnitState

__all__ = ["Coordinator", "Limits", "Phase"]


class Phase(enum.IntEnum):
    """What is going on."""

    OUTSIDE = 0
    """Nothing the engine drives."""
    FORWARD = 1
    """A forward with a graph."""
    READING = 2
    """A forward without a graph: evaluation, generation."""
    BACKWARD = 3
    """A backward."""


logger = logging.getLogger(__name__)

RECENT = 3
"""Units that a backward used last, and that stay whole although it may be through with them."""

PHASES = ("outside", "forward", "forward without gradients", "backward")


class Limits(NamedTuple):
    """How much is gathered at a time, in elements.

    Attributes:
        prefetch: gathered ahead of use; None: one unit.
        live: gathered at once, what is in use excepted.
        reuse: a unit stays whole from forward to backward when fewer elements than this are used in between.
        sequential: wait for each gather before the next is started.
        log_changes: log when a pass uses units in another order than the one before.
    """

    prefetch: int | None = None
    live: int = 1_000_000_000
    reuse: int = 0
    sequential: bool = False
    log_changes: bool = False


class Coordinator:
    """Gathers units before they are used and releases them after. Every method is called on all ranks, at any pace.

    Attributes:
        phase: the pass under way.
        memory: the unit and the number of the buffer, by what identifies a buffer's memory.
        live_numel: elements gathered just now; `peak_numel` is the most there ever were.
        is_agreed: whether all ranks went through the last forward alike.
    """

    def __init__(self, units: Sequence[GatherUnit], control: Control, limits: Limits) -> None:
        self.units = units
        self.phase: Phase = Phase.OUTSIDE
        self.live_numel: int = 0
        self.peak_numel: int = 0
        self.memory: dict[int, tuple[GatherUnit, int]] = {}
        self.is_agreed: bool = False
        self._control = control
        self._limits = limits
        self._ahead = limits.prefetch
        if self._ahead is None:
            self._ahead = max((unit.numel for unit in units), default=0)
        self._by_index = {unit.index: unit for unit in units}
        self._sizes = {unit.index: unit.numel for unit in units}
        forward = self._make(tuple(self._by_index))
        self._plans = {Phase.FORWARD: forward, Phase.READING: forward, Phase.BACKWARD: self._make(forward.backward())}
        self._plan = forward
        self._issued = 0
        self._at = -1
        self._draining = False
        self._number = 0
        self._used: list[int] = []
        self._requests: list[tuple[int, int]] = []
        self._kept: tuple[int, ...] = ()
        self._recent: list[GatherUnit] = []
        self._complete: dict[int, int] = {}
        self._opening: Posted | None = None

    def _make(self, uses: Sequence[int], *, is_observed: bool = False) -> GatherPlan:
        return make_plan(uses, self._sizes, reuse_numel=self._limits.reuse, is_observed=is_observed)

    # --- passes -------------------------------------------------------------------------------------------------

    def begin(self, phase: Phase) -> None:
        """A pass starts."""
        self.phase = phase
        self._number += 1
        self._issued, self._at, self._draining = 0, -1, False
        self._used, self._requests, self._recent = [], [], []
        self._complete.clear()
        self._plan = self._plans[phase]
        self._opening = self._control.post(self._message(Word.BEGIN))
        whole = {unit.index for unit in self.units if unit.held}
        if phase is Phase.BACKWARD:
            whole.update(self._kept)
        if whole:
            self._plan = self._make([index for index in self._plan.uses if index not in whole])
        for unit in self.units:
            if unit.state is not UnitState.SHARDED and unit.index not in whole:
                self._drop(unit)

    def end(self) -> None:
        """The pass is over: takes part in what other ranks still need, and learns from the order of use."""
        self._open()
        self._drain()
        agreed = self._settle()
        phase, plan = self.phase, self._plans[self.phase]
        if plan.is_observed and self._limits.log_changes and (not agreed or plan.uses != tuple(self._used)):
            logger.warning(
                "%s %d used modules in another order than the one before%s; gathers that no plan foresees are slow",
                PHASES[phase],
                self._number,
                "" if agreed else ", and not alike on all ranks",
            )
        if agreed:
            kept = self._kept if phase is Phase.BACKWARD else ()
            early = [index for index in kept if index not in self._used]
            early += [unit.index for unit in self.units if unit.held and unit.index not in self._used]
            self._plans[phase] = self._make([*early, *self._used], is_observed=True)
        elif self._requests:
            self._plans[phase] = self._make(plan.inserted(self._requests), is_observed=plan.is_observed)
        self._kept = ()
        if phase is Phase.FORWARD:
            self.is_agreed = agreed
            if not self._plans[Phase.BACKWARD].is_observed:
                self._plans[Phase.BACKWARD] = self._make(self._plans[phase].backward())
            self._kept = self._plans[phase].kept(self._sizes, self._limits.reuse)
        for unit in self.units:
            if unit.state is not UnitState.SHARDED and unit.index not in self._kept and not unit.held:
                self._drop(unit)
        self.phase = Phase.OUTSIDE

    def _open(self) -> None:
        """Makes sure that all ranks began the same pass, before anything waits for them."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            self._control.finish(opening)

    def abort(self) -> None:
        """The pass failed on this rank: forgets what was gathered, without meeting other ranks."""
        self._kept = ()
        self._opening = None
        self._complete.clear()
        for unit in self.units:
            unit.depth = 0
            if unit.state is not UnitState.SHARDED:
                self._drop(unit, check=False)
        self.phase = Phase.OUTSIDE

    # --- use ----------------------------------------------------------------------------------------------------

    def need(self, unit: GatherUnit) -> None:
        """Returns when `unit` is whole."""
        if self.phase is Phase.OUTSIDE:
            self._gather_outside(unit)
            return
        if unit.state is UnitState.GATHERED:
            if self.phase is not Phase.BACKWARD:
                self._note(unit)
            return
        self._open()
        if unit.state is UnitState.SHARDED:
            place = None if self._draining else self._plan.find(unit.index, self._issued)
            if place is None:
                self._drain(keep=unit)
            else:
                self._advance(place)
            if unit.state is UnitState.SHARDED:
                self._request(unit)
        if unit.state is UnitState.GATHERING:
            unit.wait()
        self._pass_over(unit)
        self._note(unit)
        if self.phase is Phase.BACKWARD:
            self._forget_old(unit)
        self._prefetch()

    def _note(self, unit: GatherUnit) -> None:
        self._used.append(unit.index)
        at = self._plan.use(unit.index, self._at + 1)
        self._at = self._at if at is None else at

    def done(self, unit: GatherUnit) -> None:
        """A forward has no further use for `unit` just now."""
        if self.phase is Phase.BACKWARD or unit.state is not UnitState.GATHERED or unit.depth or unit.held:
            return
        if self._at in self._plan.holds and self._plan.uses[self._at] == unit.index:
            return
        if self.phase is Phase.FORWARD and unit.index in self._plan.kept(self._sizes, self._limits.reuse):
            return
        self._drop(unit)

    def let_go(self, unit: GatherUnit) -> None:
        """A context that held `unit` whole is over; what was written to it has been kept or refused."""
        if unit.depth or unit.held or unit.state is not UnitState.GATHERED:
            return
        unit.accept()
        if self.phase is Phase.OUTSIDE:
            self._drop(unit)
        else:
            self.done(unit)

    def completed(self, unit: GatherUnit) -> None:
        """All gradients of one of the unit's buckets are there; after the last one backward needs it no more."""
        self._complete[unit.index] = self._complete.get(unit.index, 0) + 1
        is_idle = unit.state is UnitState.GATHERED and not unit.depth and not unit.held
        if is_idle and self._complete[unit.index] == len(unit.trainable):
            self._drop(unit)

    # --- gathers ------------------------------------------------------------------------------------------------

    def _issue(self, unit: GatherUnit) -> None:
        if unit.state is not UnitState.SHARDED:
            unit.join()
            return
        self._make_room(unit.numel)
        unit.issue()
        for place, storage in enumerate(unit.storages()):
            self.memory[storage] = (unit, place)
        self.live_numel += unit.numel
        self.peak_numel = max(self.peak_numel, self.live_numel)
        if self._limits.sequential:
            unit.wait()

    def _drop(self, unit: GatherUnit, *, check: bool = True) -> None:
        self.live_numel -= unit.numel
        for storage in unit.storages():
            del self.memory[storage]
        unit.release(check=check)
        if unit in self._recent:
            self._recent.remove(unit)

    def _advance(self, place: int) -> None:
        """Gathers everything in the plan up to and including `place`."""
        while self._issued <= place:
            unit = self._by_index[self._plan.order[self._issued]]
            self._issued += 1
            self._issue(unit)

    def _prefetch(self) -> None:
        ahead = sum(unit.numel for unit in self.units if unit.state is UnitState.GATHERING)
        while self._issued < len(self._plan.order):
            unit = self._by_index[self._plan.order[self._issued]]
            fits = ahead + unit.numel <= (self._ahead or 0) and self.live_numel + unit.numel <= self._limits.live
            if unit.state is not UnitState.SHARDED or not fits:
                return
            ahead += unit.numel
            self._issued += 1
            self._issue(unit)

    def _pass_over(self, used: GatherUnit) -> None:
        """Drops what the plan gathered before `used` and this rank did not use; a guessed plan may yet be right."""
        if not self._plan.is_observed or self._draining:
            return
        place = self._plan.find(used.index, 0)
        for index in self._plan.order[:place]:
            unit = self._by_index[index]
            if unit.state is UnitState.GATHERING:
                self._drop(unit)

    def _make_room(self, numel: int) -> None:
        """Drops idle units, the least recently used first, until `numel` more stay within the limit."""
        if self.live_numel + numel <= self._limits.live:
            return
        idle = [unit for unit in self.units if unit.state is UnitState.GATHERING]
        if self.phase is Phase.BACKWARD:
            idle += self._recent[:-1]
        for unit in idle:
            if self.live_numel + numel <= self._limits.live:
                return
            if not unit.depth and not unit.held:
                self._drop(unit)

    def _forget_old(self, unit: GatherUnit) -> None:
        """Backward tells when a unit's gradients are complete; one that waits for more of them goes meanwhile."""
        self._recent.append(unit)
        for old in self._recent[:-RECENT]:
            if not old.depth and not old.held:
                self._drop(old)

    # --- what no plan foresaw -------------------------------------------------------------------------------------

    def _drain(self, keep: GatherUnit | None = None) -> None:
        """Takes part in all gathers that are left in the plan; from here on, needs are requested."""
        while self._issued < len(self._plan.order):
            unit = self._by_index[self._plan.order[self._issued]]
            self._issued += 1
            self._issue(unit)
            if unit is not keep and unit.state is UnitState.GATHERING and self._plan.is_observed:
                self._drop(unit)
        self._draining = True

    def _message(self, word: Word, unit: int = -1) -> Message:
        after = self._used[-1] if self._used else -1
        return Message(word, self.phase, self._number, unit, after, digest(self._used))

    def _request(self, unit: GatherUnit) -> None:
        """Rounds of requests until it is this rank's turn."""
        while unit.state is UnitState.SHARDED:
            self._serve(self._control.round(self._message(Word.REQUEST, unit.index)), unit)

    def _settle(self) -> bool:
        """Serves others until nobody requests anything; whether all ranks used units in one order."""
        while True:
            rows = self._control.round(self._message(Word.DONE))
            if all(row.word == Word.DONE for row in rows):
                return len({row.digest for row in rows}) == 1
            self._serve(rows, None)

    def _serve(self, rows: list[Message], mine: GatherUnit | None) -> None:
        """Gathers the first of the requested units, on all ranks."""
        target = min(row.unit for row in rows if row.word == Word.REQUEST)
        self._requests.append(next((row.unit, row.after) for row in rows if row.unit == target))
        unit = self._by_index[target]
        if unit is mine:
            self._issue(unit)
        else:
            unit.join()

    def _gather_outside(self, unit: GatherUnit) -> None:
        """A module is called by itself. All ranks have to call the same one.

        Raises:
            EngineError: they do not.
        """
        if unit.state is UnitState.GATHERED:
            return
        rows = self._control.round(Message(Word.OUTSIDE, self.phase, self._number, unit.index))
        if len({row.unit for row in rows}) > 1:
            calls = ", ".join(f"rank {rank} {self._by_index[row.unit].title!r}" for rank, row in enumerate(rows))
            raise EngineError(
                f"modules of a model sharded by zero_optimization.stage 3 are called outside of the engine: {calls}; "
                "all ranks must call the same ones in the same order"
            )
        self._issue(unit)
        unit.wait()
