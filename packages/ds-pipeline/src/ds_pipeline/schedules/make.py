"""Schedules by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ds_core.errors import did_you_mean
from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules.classic import gpipe, one_f_one_b
from ds_pipeline.schedules.interleaved import interleaved
from ds_pipeline.schedules.ir import Schedule, looped
from ds_pipeline.schedules.listing import forward_only
from ds_pipeline.schedules.v_shape import dualpipe_v, zb_v
from ds_pipeline.schedules.zero_bubble import zb_h1

__all__ = ["SCHEDULES", "Kind", "make_schedule"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One schedule by name.

    Attributes:
        make: called with ranks, micro-batches and stages per rank.
        stages_per_rank: how many stages a rank has unless it is asked for.
        is_fixed: whether that is the only number it takes.
        summary: one line for lists.
        is_training: whether it goes backward.
    """

    make: Callable[[int, int, int], Schedule]
    stages_per_rank: int
    is_fixed: bool
    summary: str
    is_training: bool = True


SCHEDULES: dict[str, Kind] = {
    "gpipe": Kind(lambda p, m, _: gpipe(p, m), 1, True, "all forward, then all backward"),
    "1f1b": Kind(lambda p, m, _: one_f_one_b(p, m), 1, True, "one forward, one backward in turn"),
    "interleaved": Kind(interleaved, 2, False, "1F1B over several stages per rank"),
    "zb-h1": Kind(lambda p, m, _: zb_h1(p, m), 1, True, "1F1B with a split backward"),
    "zbv": Kind(lambda p, m, _: zb_v(p, m), 2, True, "zero bubble in a V, two stages per rank"),
    "dualpipev": Kind(lambda p, m, _: dualpipe_v(p, m), 2, True, "half of DualPipe in a V, two stages per rank"),
    "inference": Kind(lambda p, m, v: forward_only(looped(p, v), m), 1, False, "forward only", is_training=False),
}
"""Every schedule `make_schedule` knows."""


def make_schedule(name: str, *, ranks: int, micro_batches: int, stages_per_rank: int | None = None) -> Schedule:
    """The schedule of that name, for this many pipe ranks and micro-batches.

    Args:
        name: a key of `SCHEDULES`.
        ranks: pipe ranks, at least 1.
        micro_batches: micro-batches of one optimizer step, at least 1; fewer than ranks is allowed, and so is any
            remainder.
        stages_per_rank: stages each rank holds; None takes what the schedule is known for.

    Raises:
        ScheduleError: an unknown name, a number below 1, or a number of stages the schedule has no rule for.
    """
    kind = SCHEDULES.get(name)
    if kind is None:
        raise ScheduleError(
            f"unknown pipeline schedule {name!r}; known are {', '.join(SCHEDULES)}.{did_you_mean(name, SCHEDULES)}"
        )
    each = kind.stages_per_rank if stages_per_rank is None else stages_per_rank
    for what, value in (("ranks", ranks), ("micro_batches", micro_batches), ("stages_per_rank", each)):
        if value < 1:
            raise ScheduleError(f"{what} of schedule {name!r} must be at least 1, got {value}")
    if kind.is_fixed and each != kind.stages_per_rank:
        raise ScheduleError(
            f"stages_per_rank of schedule {name!r} must be {kind.stages_per_rank}, got {each}; leave it out, or choose "
            "'interleaved', which takes any number"
        )
    return kind.make(ranks, micro_batches, each)
