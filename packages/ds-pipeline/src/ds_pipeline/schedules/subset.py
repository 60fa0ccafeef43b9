"""A schedule without its last micro-batches."""

from __future__ import annotations

from dataclasses import replace

from ds_pipeline.schedules.ir import Schedule

__all__ = ["first_micro_batches"]


def first_micro_batches(schedule: Schedule, micro_batches: int) -> Schedule:
    """The schedule with only its first `micro_batches`, everything else in its order.

    No action waits for one of another micro-batch except through the order of a row, so what could run still can, no
    later than before, and no rank holds more.
    """
    rows = tuple(tuple(action for action in row if action.micro_batch < micro_batches) for row in schedule.rows)
    return replace(schedule, micro_batches=micro_batches, rows=rows)
