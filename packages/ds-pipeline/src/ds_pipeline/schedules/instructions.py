"""Schedules under the names that users of DeepSpeed know: for one stage, lists of instructions step by step.

They are another view of `ds_pipeline.schedules`: the actions of one rank, placed at the steps of a simulation in which
forward and backward take one step each, with what is sent and received written out.

Note [Steps]
All stages have the same number of steps, and a barrier between any two is harmless: what an action makes is sent and
received in the step after it, on both sides. Within a step come gradients before activations, and receiving before
sending, so that sends may block: gradients resolve from the last stage on, activations from the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules.ir import Op, Schedule
from ds_pipeline.schedules.make import make_schedule
from ds_pipeline.schedules.simulate import Costs, simulate

__all__ = [
    "BackwardPass",
    "BufferOpInstruction",
    "DataParallelSchedule",
    "ForwardPass",
    "InferenceSchedule",
    "LoadMicroBatch",
    "OptimizerStep",
    "PipeInstruction",
    "PipeSchedule",
    "RecvActivation",
    "RecvGrad",
    "ReduceGrads",
    "ReduceTiedGrads",
    "SendActivation",
    "SendGrad",
    "TrainSchedule",
]


class PipeInstruction:
    """One thing to do. Keyword arguments become attributes."""

    def __init__(self, **kwargs: Any) -> None:
        self.name: str = type(self).__name__
        self.kwargs: dict[str, Any] = kwargs
        self.__dict__.update(kwargs)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.kwargs.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PipeInstruction) and (other.name, other.kwargs) == (self.name, self.kwargs)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.kwargs))))


class BufferOpInstruction(PipeInstruction):
    """Something done with one of the stage's buffers, which hold a micro-batch each."""

    def __init__(self, buffer_id: int, **kwargs: Any) -> None:
        super().__init__(buffer_id=buffer_id, **kwargs)
        self.buffer_id: int = buffer_id


class OptimizerStep(PipeInstruction):
    """Update the weights and clear the gradients."""


class ReduceGrads(PipeInstruction):
    """Sum gradients over data-parallel ranks."""


class ReduceTiedGrads(PipeInstruction):
    """Sum gradients of weights that several stages share."""


class LoadMicroBatch(BufferOpInstruction):
    """Take the next micro-batch: inputs on the first stage, labels on the last."""


class ForwardPass(BufferOpInstruction):
    """Forward of the buffer's micro-batch."""


class BackwardPass(BufferOpInstruction):
    """Backward of the buffer's micro-batch."""


class SendActivation(BufferOpInstruction):
    """Send the output of the buffer's forward to the next stage."""


class RecvActivation(BufferOpInstruction):
    """Receive the buffer's input from the stage before."""


class SendGrad(BufferOpInstruction):
    """Send the gradient of the buffer's input to the stage before."""


class RecvGrad(BufferOpInstruction):
    """Receive the gradient of the buffer's output from the next stage."""


class PipeSchedule(ABC):
    """The instructions of one stage, step by step; iterate over it or over `steps`.

    A schedule of one's own says what `pipeline` is, with one stage per rank and whole backward passes.

    Args:
        micro_batches: how many go through in one batch.
        stages: stages of the pipeline, one per rank.
        stage_id: whose instructions these are.

    Raises:
        ScheduleError: no such stage, or a number below 1.
    """

    def __init__(self, micro_batches: int, stages: int, stage_id: int) -> None:
        if not 0 <= stage_id < stages:
            raise ScheduleError(f"stage_id must be in 0 to {stages - 1}, the {stages} stages, got {stage_id}")
        self.micro_batches: int = micro_batches
        self.stages: int = stages
        self.stage_id: int = stage_id

    @abstractmethod
    def pipeline(self) -> Schedule:
        """What all stages do."""

    @property
    def stage(self) -> int:
        """Whose instructions these are."""
        return self.stage_id

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        return self.stages

    @property
    def num_micro_batches(self) -> int:
        """How many go through in one batch."""
        return self.micro_batches

    @property
    def is_first_stage(self) -> bool:
        """Whether this stage has the input."""
        return self.stage_id == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this stage has the output."""
        return self.stage_id == self.stages - 1

    def __iter__(self) -> Iterator[list[PipeInstruction]]:
        return self.steps()

    def num_pipe_buffers(self) -> int:
        """Buffers this stage needs: the most micro-batches it has between their first and last instruction."""
        live: set[int] = set()
        most = 1
        for step in self._by_micro_batch():
            for kind, micro in step:
                live.add(micro)
                most = max(most, len(live))
                if kind is self._last_of_a_micro_batch():
                    live.discard(micro)
        return most

    def steps(self) -> Iterator[list[PipeInstruction]]:
        """The instructions of each step; the last step ends with those for the whole batch."""
        buffers = self.num_pipe_buffers()
        found = self._by_micro_batch()
        for place, step in enumerate(found):
            made: list[PipeInstruction] = [kind(micro % buffers) for kind, micro in step]
            if place == len(found) - 1:
                made += self._at_the_end()
            yield made

    def _at_the_end(self) -> list[PipeInstruction]:
        return []

    def _last_of_a_micro_batch(self) -> type[BufferOpInstruction]:
        if self._made().is_training:
            return BackwardPass if self.is_first_stage else SendGrad
        return ForwardPass if self.is_last_stage else SendActivation

    def _made(self) -> Schedule:
        made = self.pipeline()
        if made.is_split or made.rank_of_stage != tuple(range(self.stages)):
            raise ScheduleError(
                f"schedule {made.name!r} has a split backward or several stages on a rank, for which there are no such "
                "instructions; take gpipe, 1f1b or inference, or run the Schedule itself"
            )
        return made

    def _by_micro_batch(self) -> list[list[tuple[type[BufferOpInstruction], int]]]:
        """Kind and micro-batch of every instruction, by step; see Note [Steps]."""
        run = simulate(self._made(), Costs(1.0, 1.0, 0.0))
        found: list[list[tuple[type[BufferOpInstruction], int]]] = [[] for _ in range(round(run.makespan))]

        def passed_on(stage: int, op: Op, kind: type[BufferOpInstruction]) -> None:
            for timed in run.rows[stage] if 0 <= stage < self.stages else ():
                if timed.action.op is op:
                    found[round(timed.end)].append((kind, timed.action.micro_batch))

        if not self.is_last_stage:
            passed_on(self.stage_id + 1, Op.B, RecvGrad)
        if not self.is_first_stage:
            passed_on(self.stage_id, Op.B, SendGrad)
            passed_on(self.stage_id - 1, Op.F, RecvActivation)
        if not self.is_last_stage:
            passed_on(self.stage_id, Op.F, SendActivation)
        for timed in run.rows[self.stage_id]:
            step, micro = found[round(timed.start)], timed.action.micro_batch
            if timed.action.op is Op.F and (self.is_first_stage or self.is_last_stage):
                step.append((LoadMicroBatch, micro))
            step.append((ForwardPass if timed.action.op is Op.F else BackwardPass, micro))
        return found


class TrainSchedule(PipeSchedule):
    """1F1B, then the sums of gradients and the update."""

    def pipeline(self) -> Schedule:
        """1F1B."""
        return make_schedule("1f1b", ranks=self.stages, micro_batches=self.micro_batches)

    def _at_the_end(self) -> list[PipeInstruction]:
        return [ReduceTiedGrads(), ReduceGrads(), OptimizerStep()]


class InferenceSchedule(PipeSchedule):
    """Forward only, with two buffers."""

    def pipeline(self) -> Schedule:
        """Every micro-batch forward, one after the other."""
        return make_schedule("inference", ranks=self.stages, micro_batches=self.micro_batches)


class DataParallelSchedule(PipeSchedule):
    """No pipeline: every rank has all layers, and accumulates gradients in one buffer, a micro-batch a step."""

    def pipeline(self) -> Schedule:
        """1F1B on one rank: forward and backward of each micro-batch in turn."""
        return make_schedule("1f1b", ranks=1, micro_batches=self.micro_batches)

    def num_pipe_buffers(self) -> int:
        """One."""
        return 1

    def _by_micro_batch(self) -> list[list[tuple[type[BufferOpInstruction], int]]]:
        kinds = {Op.F: ForwardPass, Op.B: BackwardPass}
        found: list[list[tuple[type[BufferOpInstruction], int]]] = [[] for _ in range(self.micro_batches)]
        for action in self.pipeline().rows[0]:
            if action.op is Op.F:
                found[action.micro_batch].append((LoadMicroBatch, action.micro_batch))
            found[action.micro_batch].append((kinds[action.op], action.micro_batch))
        return found

    def _at_the_end(self) -> list[PipeInstruction]:
        return [ReduceGrads(), OptimizerStep()]
