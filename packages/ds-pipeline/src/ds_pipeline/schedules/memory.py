"""What each rank holds at most while it goes through its row; the order alone decides, not the time.

Note [What is held]
A stage and micro-batch holds its *activations* from the start of `F` to the end of `B`. Where the backward is split,
the end of `I` lets go of them and leaves a *weight context* (inputs of the layers and gradients of their outputs)
until the end of `W`. Counted are stages times micro-batches: on a rank with two stages each is about half as large as
on a rank with one. Weights, gradients and messages that arrived early are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules.ir import Op, Schedule

__all__ = ["Held", "peak_bytes", "peaks"]


@dataclass(frozen=True, slots=True)
class Held:
    """The most a rank holds at once; see Note [What is held].

    Attributes:
        activations: stages times micro-batches between `F` and `B` or `I`.
        weight_contexts: between `I` and `W`.
        both: the most of the two together, which may be less than the sum of the peaks.
    """

    activations: int
    weight_contexts: int
    both: int


def peaks(schedule: Schedule) -> tuple[Held, ...]:
    """The peak of each rank, counted in stages times micro-batches."""
    ones, zeros = [1] * schedule.stages, [0] * schedule.stages
    return tuple(
        Held(*found)
        for found in zip(
            _peak(schedule, ones, zeros), _peak(schedule, zeros, ones), _peak(schedule, ones, ones), strict=True
        )
    )


def peak_bytes(
    schedule: Schedule, activation_bytes: Sequence[int], weight_context_bytes: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The peak of each rank in bytes.

    Args:
        schedule: what the ranks do.
        activation_bytes: for each stage, what one micro-batch leaves between forward and backward.
        weight_context_bytes: for each stage, what of it stays between `I` and `W`; None takes all of it.

    Raises:
        ScheduleError: not one number for each stage.
    """
    contexts = activation_bytes if weight_context_bytes is None else weight_context_bytes
    for name, given in (("activation_bytes", activation_bytes), ("weight_context_bytes", contexts)):
        if len(given) != schedule.stages:
            raise ScheduleError(f"{name} must have one number for each of {schedule.stages} stages, got {len(given)}")
    return _peak(schedule, activation_bytes, contexts)


def _peak(schedule: Schedule, activation: Sequence[int], context: Sequence[int]) -> tuple[int, ...]:
    keeps = schedule.is_training
    found: list[int] = []
    for row in schedule.rows:
        held = most = 0
        for action in row:
            stage = action.stage
            if action.op is Op.F:
                held += activation[stage]
            most = max(most, held)
            if action.op is Op.B or (action.op is Op.F and not keeps):
                held -= activation[stage]
            elif action.op is Op.I:
                held += context[stage] - activation[stage]
                most = max(most, held)
            elif action.op is Op.W:
                held -= context[stage]
        found.append(most)
    return tuple(found)
