"""Learning-rate schedules."""

from __future__ import annotations

from deepspeed._doors import doors

LR_SCHEDULE = "lr_schedule"
LR_RANGE_TEST = "LRRangeTest"
ONE_CYCLE = "OneCycle"
WARMUP_LR = "WarmupLR"
WARMUP_DECAY_LR = "WarmupDecayLR"
WARMUP_COSINE_LR = "WarmupCosineLR"

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.schedules": (
            "VALID_LR_SCHEDULES LRRangeTest OneCycle WarmupLR WarmupDecayLR WarmupCosineLR add_tuning_arguments "
            "get_config_from_args=scheduler_from_args get_lr_from_config=lr_from_config"
        ),
    },
)
