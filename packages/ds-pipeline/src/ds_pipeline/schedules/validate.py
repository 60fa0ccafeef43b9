"""Whether a set of ranks could execute a schedule, and what is wrong if not."""

from __future__ import annotations

from collections import Counter

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules.ir import Action, Op, Schedule
from ds_pipeline.schedules.order import in_order

__all__ = ["validate"]


def validate(schedule: Schedule) -> None:
    """Return if every stage does all it must for every micro-batch, once, on its rank, and no rank waits forever.

    A schedule that goes backward nowhere is one for evaluation; then forward passes are enough.

    Raises:
        ScheduleError: names the rank, the action, and what is missing or waited for.
    """
    _placement(schedule)
    _places(schedule)
    _complete(schedule)
    in_order(schedule)


def _placement(schedule: Schedule) -> None:
    name, ranks = schedule.name, schedule.ranks
    if schedule.micro_batches < 1:
        raise ScheduleError(f"schedule {name!r} must have at least 1 micro-batch, got {schedule.micro_batches}")
    if not schedule.stages or not ranks:
        raise ScheduleError(f"schedule {name!r} has {schedule.stages} stages on {ranks} ranks; it needs one of each")
    for stage, rank in enumerate(schedule.rank_of_stage):
        if not 0 <= rank < ranks:
            raise ScheduleError(f"schedule {name!r} places stage {stage} on rank {rank}; it has rows for {ranks} ranks")
    for rank in range(ranks):
        if rank not in schedule.rank_of_stage:
            raise ScheduleError(f"schedule {name!r} places no stage on rank {rank}; leave out its row")


def _places(schedule: Schedule) -> None:
    for rank, row in enumerate(schedule.rows):
        for action in row:
            where = f"schedule {schedule.name!r}, rank {rank}, {action}:"
            if not 0 <= action.stage < schedule.stages:
                raise ScheduleError(f"{where} there is no stage {action.stage}; stages are 0 to {schedule.stages - 1}")
            if not 0 <= action.micro_batch < schedule.micro_batches:
                last = schedule.micro_batches - 1
                raise ScheduleError(f"{where} there is no micro-batch {action.micro_batch}; they are 0 to {last}")
            home = schedule.rank_of_stage[action.stage]
            if home != rank:
                raise ScheduleError(f"{where} stage {action.stage} is on rank {home}; move the action to its row")


def _complete(schedule: Schedule) -> None:
    """Once each: F, and B or both I and W."""
    training = schedule.is_training
    for rank, row in enumerate(schedule.rows):
        found = Counter(row)
        for stage in schedule.stages_of(rank):
            for micro in range(schedule.micro_batches):
                times = {op: found[Action(op, stage, micro)] for op in Op}
                where = f"schedule {schedule.name!r}, rank {rank}, stage {stage}, micro-batch {micro}:"
                for op, count in times.items():
                    if count > 1:
                        raise ScheduleError(f"{where} {Action(op, stage, micro)} comes {count} times; keep one")
                if not times[Op.F]:
                    raise ScheduleError(f"{where} there is no forward; add {Action(Op.F, stage, micro)}")
                if training:
                    _backward(times, where, stage, micro)


def _backward(times: dict[Op, int], where: str, stage: int, micro: int) -> None:
    whole, inputs, weights = (Action(op, stage, micro) for op in (Op.B, Op.I, Op.W))
    if times[Op.B] and (times[Op.I] or times[Op.W]):
        part = inputs if times[Op.I] else weights
        raise ScheduleError(f"{where} both {whole} and {part} are there; a backward is either B, or I and W")
    if times[Op.I] and not times[Op.W]:
        raise ScheduleError(f"{where} {inputs} has no {weights} after it; the weights get no gradient")
    if times[Op.W] and not times[Op.I]:
        raise ScheduleError(f"{where} {weights} has no {inputs} before it; the stage before gets no gradient")
    if not times[Op.B] and not times[Op.I]:
        raise ScheduleError(f"{where} there is no backward; add {whole}, or {inputs} and {weights}")
