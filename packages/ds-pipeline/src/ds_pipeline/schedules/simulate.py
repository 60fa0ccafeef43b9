"""How long a schedule takes, where its ranks are idle, and how much they hold, for given costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules.ir import Action, Op, Schedule
from ds_pipeline.schedules.order import in_order, inputs_of

__all__ = ["Costs", "Simulation", "Timed", "simulate"]

Cost = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class Costs:
    """How long things take, in any one unit; each one number, or one for each stage.

    Attributes:
        forward: `F`.
        backward_input: `I`.
        backward_weight: `W`. A `B` takes as long as `I` and `W` together.
        transfer: from the end of an action until another rank has what it sent; for a stage, what it receives. The
            ranks go on meanwhile, and messages do not slow each other down. Between stages of one rank it is 0.
    """

    forward: Cost = 1.0
    backward_input: Cost = 1.0
    backward_weight: Cost = 1.0
    transfer: Cost = 0.0

    def of(self, action: Action) -> float:
        """How long the action takes."""
        stage = action.stage
        if action.op is Op.F:
            return _at(self.forward, stage)
        if action.op is Op.I:
            return _at(self.backward_input, stage)
        if action.op is Op.W:
            return _at(self.backward_weight, stage)
        return _at(self.backward_input, stage) + _at(self.backward_weight, stage)

    def check(self, stages: int) -> None:
        """Raise ScheduleError unless there is a finite number of at least 0 for each stage."""
        for name in ("forward", "backward_input", "backward_weight", "transfer"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != stages:
                raise ScheduleError(
                    f"costs.{name} must be one number or one for each of {stages} stages, got {len(value)}"
                )
            if not all(0 <= _at(value, stage) < math.inf for stage in range(stages)):
                raise ScheduleError(f"costs.{name} must be at least 0 and finite, got {value}")


def _at(value: Cost, stage: int) -> float:
    return value[stage] if isinstance(value, Sequence) else value


@dataclass(frozen=True, slots=True)
class Timed:
    """An action with its time."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """A schedule with a time for every action.

    Attributes:
        schedule: what was simulated.
        costs: with which costs.
        rows: for each rank its actions in order, with start and end.
    """

    schedule: Schedule
    costs: Costs
    rows: tuple[tuple[Timed, ...], ...]

    @property
    def makespan(self) -> float:
        """From the start of the first action to the end of the last, over all ranks."""
        return max((row[-1].end for row in self.rows if row), default=0.0)

    def busy(self, rank: int) -> float:
        """How long `rank` computes."""
        return sum(timed.end - timed.start for timed in self.rows[rank])

    def idle(self, rank: int) -> float:
        """How long `rank` computes nothing, from 0 to the makespan."""
        return self.makespan - self.busy(rank)

    def inner_idle(self, rank: int) -> float:
        """How long `rank` computes nothing between its own first start and its own last end.

        Qi et al. count this way: a rank that is done goes on with its optimizer step while others still compute.
        """
        row = self.rows[rank]
        return row[-1].end - row[0].start - self.busy(rank) if row else 0.0

    @property
    def bubble_fraction(self) -> float:
        """Idle share of all ranks' time up to the makespan, in [0, 1)."""
        total = self.makespan * self.schedule.ranks
        return sum(map(self.idle, range(self.schedule.ranks))) / total if total else 0.0

    @property
    def inner_bubble(self) -> float:
        """The largest `inner_idle` of a rank: 0 where the papers say "zero bubble"."""
        return max(map(self.inner_idle, range(self.schedule.ranks)))


def simulate(schedule: Schedule, costs: Costs | None = None) -> Simulation:
    """Each rank takes its row in order and starts an action as soon as its inputs are there.

    Args:
        schedule: one that `validate` accepts.
        costs: how long things take; forward, backward for inputs and for weights 1 each unless given.

    Raises:
        ScheduleError: costs that do not fit the stages, or ranks that would wait for each other forever.
    """
    costs = Costs() if costs is None else costs
    costs.check(schedule.stages)
    inputs = inputs_of(schedule)
    free = [0.0] * schedule.ranks
    ends: dict[Action, float] = {}
    rows: list[list[Timed]] = [[] for _ in range(schedule.ranks)]
    for rank, action in in_order(schedule):
        start = free[rank]
        for needed in inputs[action]:
            away = schedule.rank_of_stage[needed.stage] != rank
            start = max(start, ends[needed] + (_at(costs.transfer, action.stage) if away else 0.0))
        free[rank] = ends[action] = start + costs.of(action)
        rows[rank].append(Timed(action, start, free[rank]))
    return Simulation(schedule, costs, tuple(map(tuple, rows)))
