"""Schedules found by list scheduling: time goes on in unit steps, and a free rank takes the best action there is.

Greedy: no step is given up for a better one later, so the result is good where actions take equally long, and nothing
says that it is the best.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules.ir import Action, Op, Schedule
from ds_pipeline.schedules.order import inputs_of

__all__ = ["forward_only", "weights_when_idle"]


def forward_only(rank_of_stage: Sequence[int], micro_batches: int, name: str = "inference") -> Schedule:
    """Forward passes only, for evaluation, over whatever placement of stages training has.

    A rank with several stages takes the one nearest to the output, then the lowest micro-batch: results come early
    and few activations wait between stages.
    """
    ranks = max(rank_of_stage) + 1
    last = len(rank_of_stage) - 1
    reached = [0] * (last + 2)  # micro-batches that each stage has done; the extra one stands for "never reached"
    rows: list[list[Action]] = [[] for _ in range(ranks)]
    while reached[last] < micro_batches:
        ready = list(reached)  # what is done in this step is there for others in the next
        taken: set[int] = set()
        for stage in range(last, -1, -1):
            rank, micro = rank_of_stage[stage], reached[stage]
            there = micro_batches if stage == 0 else ready[stage - 1]
            if rank not in taken and micro < there:
                rows[rank].append(Action(Op.F, stage, micro))
                reached[stage] += 1
                taken.add(rank)
    return Schedule(name, micro_batches, tuple(rank_of_stage), tuple(map(tuple, rows)))


def weights_when_idle(schedule: Schedule, limit: int) -> Schedule:
    """The schedule with every `W` moved to where its rank would wait, and the rest in its order.

    Args:
        schedule: every action takes one step, so none may be a whole `B`.
        limit: stages times micro-batches a rank may hold; at the limit a `W` goes before a forward.

    Raises:
        ScheduleError: a whole backward, or a limit below what the order of the rest needs.
    """
    if any(action.op is Op.B for row in schedule.rows for action in row):
        raise ScheduleError(f"schedule {schedule.name!r} has whole backwards; only split ones can put weights off")
    inputs = inputs_of(schedule)
    ahead = [deque(action for action in row if action.op is not Op.W) for row in schedule.rows]
    waiting: list[deque[Action]] = [deque() for _ in schedule.rows]
    rows: list[list[Action]] = [[] for _ in schedule.rows]
    held = [0] * schedule.ranks
    done: set[Action] = set()
    while any(ahead) or any(waiting):
        taken: list[tuple[int, Action]] = []
        for rank, row in enumerate(ahead):
            is_full = held[rank] >= limit and bool(row) and row[0].op is Op.F
            if row and not is_full and done.issuperset(inputs[row[0]]):
                taken.append((rank, row.popleft()))
            elif waiting[rank]:
                taken.append((rank, waiting[rank].popleft()))
        if not taken:
            raise ScheduleError(f"schedule {schedule.name!r} cannot go on with {limit} held on a rank; raise the limit")
        for rank, action in taken:
            rows[rank].append(action)
            done.add(action)
            held[rank] += {Op.F: 1, Op.W: -1}.get(action.op, 0)
            if action.op is Op.I:
                waiting[rank].append(replace(action, op=Op.W))
    return replace(schedule, rows=tuple(map(tuple, rows)))
