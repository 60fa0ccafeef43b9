"""Adam."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "deepspeed.ops.adam.cpu_adam": "DeepSpeedCPUAdam",
        "deepspeed.ops.adam.fused_adam": "FusedAdam",
    },
    waiting={
        "ds-zero": "ZenFlowCPUAdam ZenFlowSelectiveAdamW ZenFlowSelectiveAdamW_stage3",
    },
)
