"""Which schedule a config means: one by name, or one from a text file."""

from __future__ import annotations

from pathlib import Path

from ds_core.errors import did_you_mean
from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules import SCHEDULES, Schedule, from_text, make_schedule, validate

__all__ = ["choose_schedule", "placement"]


def choose_schedule(name: str, *, ranks: int, micro_batches: int, stages_per_rank: int | None) -> Schedule:
    """The schedule, checked.

    Args:
        name: of a schedule, or path of a file with the text of one.
        ranks: pipe ranks.
        micro_batches: of a step.
        stages_per_rank: None for what the schedule is known for.

    Raises:
        ScheduleError: unknown, or it does not fit; it names `pipeline.schedule`.
    """
    if ranks == 1:
        return make_schedule("1f1b", ranks=1, micro_batches=micro_batches)
    if name in SCHEDULES:
        if not SCHEDULES[name].is_training:
            raise ScheduleError(f"pipeline.schedule {name!r} does not train; choose {', '.join(_training())}")
        return make_schedule(name, ranks=ranks, micro_batches=micro_batches, stages_per_rank=stages_per_rank)
    schedule = _read(name)
    for what, wanted, has in (
        ("pipe ranks", ranks, schedule.ranks),
        ("micro-batches", micro_batches, schedule.micro_batches),
    ):
        if wanted != has:
            raise ScheduleError(f"pipeline.schedule {name!r} is written for {has} {what}, and this job has {wanted}")
    if not schedule.is_training:
        raise ScheduleError(f"pipeline.schedule {name!r} goes forward only and does not train")
    validate(schedule)
    return schedule


def placement(name: str, *, ranks: int, stages_per_rank: int | None) -> tuple[int, ...]:
    """The pipe rank of each stage under that schedule."""
    if ranks == 1:
        return (0,)
    if name not in SCHEDULES:
        return _read(name).rank_of_stage
    return make_schedule(name, ranks=ranks, micro_batches=ranks, stages_per_rank=stages_per_rank).rank_of_stage


def _training() -> list[str]:
    return [name for name, kind in SCHEDULES.items() if kind.is_training]


def _read(name: str) -> Schedule:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ScheduleError(
            f"pipeline.schedule {name!r} is neither the name of a schedule ({', '.join(_training())}) nor a file."
            + did_you_mean(name, _training())
        )
    return from_text(path.read_text(encoding="utf-8"))
