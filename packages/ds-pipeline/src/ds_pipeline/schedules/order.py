"""What each action waits for, and an order in which the ranks get through their rows."""

from __future__ import annotations

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules.ir import Action, Op, Schedule

__all__ = ["in_order", "inputs_of"]


def inputs_of(schedule: Schedule) -> dict[Action, tuple[Action, ...]]:
    """What must be done before each action, whatever the order of the rows.

    A forward waits for the forward of the stage before; a backward (`B` or `I`) for its own forward and the backward
    of the stage behind; a `W` for its own `I`. What no row has is left out: `validate` misses it.
    """
    backward: dict[tuple[int, int], Action] = {}
    forward: set[Action] = set()
    for row in schedule.rows:
        for action in row:
            if action.op.sends_gradient:
                backward[action.stage, action.micro_batch] = action
            elif action.op is Op.F:
                forward.add(action)

    def needed(action: Action) -> tuple[Action, ...]:
        stage, micro = action.stage, action.micro_batch
        if action.op is Op.F:
            before = Action(Op.F, stage - 1, micro)
            return (before,) if before in forward else ()
        if action.op is Op.W:
            own = backward.get((stage, micro))
            return (own,) if own is not None else ()
        found: list[Action] = [own] if (own := Action(Op.F, stage, micro)) in forward else []
        behind = backward.get((stage + 1, micro))
        return (*found, behind) if behind is not None else tuple(found)

    return {action: needed(action) for row in schedule.rows for action in row}


def in_order(schedule: Schedule) -> list[tuple[int, Action]]:
    """Every action with its rank, each after what it waits for and after what its rank does before.

    Sending never blocks and an input waits for as long as it takes, so if one such order exists, every run gets
    through, however long the actions take.

    Raises:
        ScheduleError: there is none: ranks wait for each other in a circle, which the message spells out.
    """
    inputs = inputs_of(schedule)
    at = [0] * schedule.ranks
    done: set[Action] = set()
    order: list[tuple[int, Action]] = []
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.rows):
            while at[rank] < len(row) and done.issuperset(inputs[row[at[rank]]]):
                action = row[at[rank]]
                order.append((rank, action))
                done.add(action)
                at[rank] += 1
                moved = True
    stuck = [rank for rank, row in enumerate(schedule.rows) if at[rank] < len(row)]
    if stuck:
        heads = {rank: schedule.rows[rank][at[rank]] for rank in stuck}
        raise ScheduleError(f"schedule {schedule.name!r} cannot run: {_circle(schedule, heads, inputs, done)}")
    return order


def _circle(
    schedule: Schedule, heads: dict[int, Action], inputs: dict[Action, tuple[Action, ...]], done: set[Action]
) -> str:
    home = {action: rank for rank, row in enumerate(schedule.rows) for action in row}

    def missing(rank: int) -> Action:
        return next(needed for needed in inputs[heads[rank]] if needed not in done)

    seen: list[int] = []
    rank = min(heads)
    while rank not in seen:
        seen.append(rank)
        rank = home[missing(rank)]
    ring = seen[seen.index(rank) :]
    if len(ring) == 1:
        return f"rank {rank} has {heads[rank]} before {missing(rank)}, which it needs; exchange them"
    told = "; ".join(
        f"rank {one} waits before {heads[one]} for {missing(one)} of rank {home[missing(one)]}" for one in ring
    )
    return f"ranks wait for each other in a circle: {told}; move one of the awaited actions forward in its row"
