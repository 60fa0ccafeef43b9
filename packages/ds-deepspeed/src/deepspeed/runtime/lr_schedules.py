"""Learning-rate schedules, and what command-line flags and configs say of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

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
            "VALID_LR_SCHEDULES LRRangeTest OneCycle WarmupLR WarmupDecayLR WarmupCosineLR add_tuning_arguments"
        ),
    },
    refusals={
        "override_params": "flags of add_tuning_arguments become a section by get_config_from_args",
        "get_torch_optimizer": "schedules here take the optimizer that initialize returns",
    },
)


def get_config_from_args(args: argparse.Namespace) -> tuple[dict[str, Any] | None, str | None]:
    """A ``scheduler`` section from the flags of `add_tuning_arguments`, or None and why there is none."""
    from ds_core.errors import ConfigError
    from ds_core.schedules import scheduler_from_args

    try:
        section = scheduler_from_args(args)
    except ConfigError as error:
        return None, str(error)
    return section, None if section is not None else "--lr_schedule is not given"


def get_lr_from_config(config: Mapping[str, Any]) -> tuple[float | list[float] | None, str]:
    """The rate that a ``scheduler`` section names, or None and why it names none."""
    from ds_core.errors import ConfigError
    from ds_core.schedules import lr_from_config

    try:
        return lr_from_config(config), ""
    except ConfigError as error:
        return None, str(error)
