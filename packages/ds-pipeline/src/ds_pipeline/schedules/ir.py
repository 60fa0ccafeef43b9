"""A pipeline schedule as data: which rank does what, in which order, and what that makes it send.

Stages are counted from the input of the model to its output. A schedule says nothing of time: each rank takes its row
from left to right and waits where an input has not arrived (`ds_pipeline.schedules.simulate` says how long).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Action", "Message", "Op", "Schedule", "looped", "messages", "v_shaped"]


class Op(enum.Enum):
    """What a rank does with one micro-batch at one stage."""

    F = "F"
    """Forward."""
    B = "B"
    """Backward, for the inputs and the weights."""
    I = "I"  # noqa: E741 -- the letter of the papers' figures
    """Backward for the inputs only: what the stage before waits for. A `W` must follow."""
    W = "W"
    """Backward for the weights only: nobody waits for it but the optimizer step."""

    @property
    def sends_gradient(self) -> bool:
        """Whether the stage before waits for this."""
        return self in (Op.B, Op.I)


@dataclass(frozen=True, slots=True)
class Action:
    """One op of one micro-batch at one stage; as text ``2F0``: stage 2, forward, micro-batch 0."""

    op: Op
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.op.value}{self.micro_batch}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """What every rank of a pipeline does, in order.

    Attributes:
        name: what errors, pictures and tables call it.
        micro_batches: how many go through in one optimizer step.
        rank_of_stage: the pipe rank that holds each stage.
        rows: the actions of each pipe rank, in order.
    """

    name: str
    micro_batches: int
    rank_of_stage: tuple[int, ...]
    rows: tuple[tuple[Action, ...], ...]

    @property
    def ranks(self) -> int:
        """Number of pipe ranks."""
        return len(self.rows)

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.rank_of_stage)

    @property
    def is_training(self) -> bool:
        """Whether anything goes backward."""
        return any(action.op is not Op.F for row in self.rows for action in row)

    @property
    def is_split(self) -> bool:
        """Whether some backward is done in two parts, `I` and `W`."""
        return any(action.op is Op.I for row in self.rows for action in row)

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages `rank` holds, in the order of the model."""
        return tuple(stage for stage, holder in enumerate(self.rank_of_stage) if holder == rank)


@dataclass(frozen=True, slots=True)
class Message:
    """Something one rank sends to another: an activation (from an `F`) or its gradient (from a `B` or `I`).

    Attributes:
        action: what makes it, on the rank that sends.
        stage: the stage that takes it.
    """

    action: Action
    stage: int

    @property
    def is_gradient(self) -> bool:
        """Whether it goes backward."""
        return self.action.op is not Op.F

    @property
    def micro_batch(self) -> int:
        """The micro-batch it belongs to."""
        return self.action.micro_batch


def messages(schedule: Schedule) -> dict[tuple[int, int], tuple[Message, ...]]:
    """What each rank sends to each other rank, in the order of the sender, by (sender, receiver).

    Stages next to each other on one rank hand over in memory; they send nothing. The receiver may need what it gets
    in another order than it arrives (a rank with several stages), so it keeps early messages until their action.
    """
    sent: dict[tuple[int, int], list[Message]] = {}
    for rank, row in enumerate(schedule.rows):
        for action in row:
            if action.op is Op.W:
                continue
            target = action.stage + (1 if action.op is Op.F else -1)
            if not 0 <= target < schedule.stages:
                continue
            receiver = schedule.rank_of_stage[target]
            if receiver != rank:
                sent.setdefault((rank, receiver), []).append(Message(action, target))
    return {pair: tuple(found) for pair, found in sorted(sent.items())}


def looped(ranks: int, stages_per_rank: int = 1) -> tuple[int, ...]:
    """Stages dealt out in rounds: rank r holds stages r, r + ranks, r + 2 ranks and so on."""
    return tuple(stage % ranks for stage in range(ranks * stages_per_rank))


def v_shaped(ranks: int) -> tuple[int, ...]:
    """Stages laid down the ranks and up again: rank r holds stages r and 2 ranks - 1 - r, so rank 0 has the loss."""
    return (*range(ranks), *reversed(range(ranks)))
