"""Schedules as instructions."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_pipeline.schedules.instructions": (
            "PipeSchedule TrainSchedule InferenceSchedule DataParallelSchedule OptimizerStep ReduceGrads "
            "ReduceTiedGrads LoadMicroBatch ForwardPass BackwardPass SendActivation RecvActivation SendGrad "
            "RecvGrad PipeInstruction BufferOpInstruction"
        ),
    },
)
