"""Instructions step by step: executed by a small machine whose sends block and whose steps end with a barrier."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules import Schedule, make_schedule, peaks
from ds_pipeline.schedules import instructions as ins

STAGES, MICRO_BATCHES = st.integers(1, 6), st.integers(1, 9)


class GPipeSchedule(ins.PipeSchedule):
    """A schedule of one's own."""

    def pipeline(self) -> Schedule:
        return make_schedule("gpipe", ranks=self.stages, micro_batches=self.micro_batches)


class Stage:
    """One stage: buffers that hold what was loaded, received and computed, as words."""

    def __init__(self, schedule: ins.PipeSchedule) -> None:
        self.schedule = schedule
        self.buffers: list[dict[str, Any]] = [{} for _ in range(schedule.num_pipe_buffers())]
        self.loaded = 0
        self.log: list[str] = []

    def do(self, what: ins.PipeInstruction) -> None:
        """Everything but sending and receiving."""
        if not isinstance(what, ins.BufferOpInstruction):
            self.log.append(what.name)
            return
        buffer, stage = self.buffers[what.buffer_id], self.schedule.stage_id
        if isinstance(what, ins.LoadMicroBatch):
            if self.schedule.is_first_stage:
                assert not buffer, "a buffer is loaded while it is in use"
                buffer["input"] = f"x{self.loaded}"
            buffer["label"] = self.loaded
            self.loaded += 1
        elif isinstance(what, ins.ForwardPass):
            buffer["output"] = f"{buffer['input']}.{stage}"
            if self.schedule.is_last_stage:
                buffer["grad"] = f"d{buffer['label']}"
                self.log.append(buffer["output"])
                if isinstance(self.schedule, ins.InferenceSchedule):
                    buffer.clear()
        else:
            assert isinstance(what, ins.BackwardPass)
            assert "output" in buffer
            buffer["input_grad"] = f"{buffer.pop('grad')}.{stage}"
            self.log.append(buffer["input_grad"])
            if self.schedule.is_first_stage:
                buffer.clear()


def exchange(sender: Stage, send: ins.BufferOpInstruction, receiver: Stage, receive: ins.BufferOpInstruction) -> None:
    """One blocking send met by its receive."""
    source, target = sender.buffers[send.buffer_id], receiver.buffers[receive.buffer_id]
    if isinstance(send, ins.SendActivation):
        assert isinstance(receive, ins.RecvActivation)
        assert not target, "a buffer receives while it is in use"
        target["input"] = source["output"]
        if isinstance(receiver.schedule, ins.InferenceSchedule):
            source.clear()
    else:
        assert isinstance(receive, ins.RecvGrad)
        target["grad"] = source["input_grad"]
        source.clear()


def run_step(machine: list[Stage], lists: list[list[ins.PipeInstruction]]) -> None:
    """All instructions of a step on all stages; fails if somebody waits for what does not come in this step."""
    at = [0] * len(machine)

    def head(stage: int) -> ins.PipeInstruction | None:
        inside = 0 <= stage < len(machine) and at[stage] < len(lists[stage])
        return lists[stage][at[stage]] if inside else None

    moved = True
    while moved:
        moved = False
        for stage in range(len(machine)):
            what = head(stage)
            if isinstance(what, ins.SendActivation | ins.SendGrad):
                other = stage + (1 if isinstance(what, ins.SendActivation) else -1)
                wanted = ins.RecvActivation if isinstance(what, ins.SendActivation) else ins.RecvGrad
                there = head(other)
                if isinstance(there, wanted):
                    exchange(machine[stage], what, machine[other], there)
                    at[stage] += 1
                    at[other] += 1
                    moved = True
            elif what is not None and not isinstance(what, ins.RecvActivation | ins.RecvGrad):
                machine[stage].do(what)
                at[stage] += 1
                moved = True
    assert at == [len(one) for one in lists], f"stuck before {[head(stage) for stage in range(len(machine))]}"


def executed(kind: type[ins.PipeSchedule], stages: int, micro_batches: int) -> list[Stage]:
    machine = [Stage(kind(micro_batches, stages, stage)) for stage in range(stages)]
    for lists in zip(*(stage.schedule.steps() for stage in machine), strict=True):
        run_step(machine, list(lists))
    return machine


def path(stages: int) -> str:
    return "".join(f".{stage}" for stage in range(stages))


@pytest.mark.parametrize("kind", [ins.TrainSchedule, GPipeSchedule])
@given(stages=STAGES, micro_batches=MICRO_BATCHES)
def test_training_takes_every_micro_batch_through_all_stages_and_back(kind, stages, micro_batches):
    machine = executed(kind, stages, micro_batches)
    back = "".join(f".{stage}" for stage in reversed(range(stages)))
    first, last = machine[0].log, machine[-1].log
    assert [word for word in last if word[0] == "x"] == [f"x{micro}{path(stages)}" for micro in range(micro_batches)]
    assert [word for word in first if word[0] == "d"] == [f"d{micro}{back}" for micro in range(micro_batches)]
    assert not any(buffer for stage in machine for buffer in stage.buffers)


@given(stages=STAGES, micro_batches=MICRO_BATCHES)
def test_every_stage_ends_with_the_sums_and_the_update(stages, micro_batches):
    for stage in executed(ins.TrainSchedule, stages, micro_batches):
        assert stage.log[-3:] == ["ReduceTiedGrads", "ReduceGrads", "OptimizerStep"]


@given(stages=STAGES, micro_batches=MICRO_BATCHES)
def test_inference_goes_forward_with_two_buffers(stages, micro_batches):
    machine = executed(ins.InferenceSchedule, stages, micro_batches)
    assert machine[-1].log == [f"x{micro}{path(stages)}" for micro in range(micro_batches)]
    assert all(len(stage.buffers) <= 2 for stage in machine)


@given(stages=STAGES, micro_batches=MICRO_BATCHES)
def test_training_needs_the_buffers_of_the_forwards_in_flight(stages, micro_batches):
    """One more where the gradient of one micro-batch waits to be sent while the next arrives."""
    held = peaks(make_schedule("1f1b", ranks=stages, micro_batches=micro_batches))
    for stage in range(stages):
        buffers = ins.TrainSchedule(micro_batches, stages, stage).num_pipe_buffers()
        assert held[stage].both <= buffers <= held[stage].both + 1


@given(stages=STAGES, micro_batches=MICRO_BATCHES, data=st.data())
def test_data_parallel_accumulates_in_one_buffer(stages, micro_batches, data):
    schedule = ins.DataParallelSchedule(micro_batches, stages, data.draw(st.integers(0, stages - 1)))
    one = [ins.LoadMicroBatch(0), ins.ForwardPass(0), ins.BackwardPass(0)]
    *others, last = list(schedule)
    assert others == [one] * (micro_batches - 1)
    assert last == [*one, ins.ReduceGrads(), ins.OptimizerStep()]
    assert schedule.num_pipe_buffers() == 1


def test_instructions_show_and_compare_by_what_they_say():
    assert repr(ins.SendGrad(3, note="x")) == "SendGrad(buffer_id=3, note='x')"
    assert ins.SendGrad(3).buffer_id == 3
    assert ins.SendGrad(3) == ins.SendGrad(3)
    assert len({ins.SendGrad(3), ins.SendGrad(3), ins.SendGrad(2), ins.RecvGrad(3)}) == 3
    assert ins.PipeInstruction(depth=2).depth == 2


def test_what_a_schedule_says_of_its_stage():
    schedule = ins.TrainSchedule(micro_batches=4, stages=3, stage_id=2)
    assert (schedule.stage, schedule.num_stages, schedule.num_micro_batches) == (2, 3, 4)
    assert (schedule.is_first_stage, schedule.is_last_stage) == (False, True)


def test_a_stage_that_is_not_there():
    with pytest.raises(ScheduleError, match="stage_id must be in 0 to 2, the 3 stages, got 3"):
        ins.TrainSchedule(micro_batches=4, stages=3, stage_id=3)


@pytest.mark.parametrize("name", ["zb-h1", "zbv"])
def test_what_has_no_instructions_is_refused(name):
    class Own(ins.PipeSchedule):
        def pipeline(self) -> Schedule:
            return make_schedule(name, ranks=2, micro_batches=4)

    with pytest.raises(ScheduleError, match=f"schedule '{name}' has a split backward or several stages on a rank"):
        list(Own(4, 2, 0))
