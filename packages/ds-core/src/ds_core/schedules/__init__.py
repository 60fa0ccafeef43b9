"""Learning-rate schedules: DeepSpeed's five by definition, and torch's by name. Importing this leaves torch alone."""

from ds_core.schedules.base import HasParamGroups, Schedule
from ds_core.schedules.create import create
from ds_core.schedules.lr_range import LRRangeTest
from ds_core.schedules.one_cycle import OneCycle
from ds_core.schedules.registry import VALID_LR_SCHEDULES
from ds_core.schedules.tuning import add_tuning_arguments, lr_from_config, scheduler_from_args
from ds_core.schedules.warmup import WarmupCosineLR, WarmupDecayLR, WarmupLR

__all__ = [
    "VALID_LR_SCHEDULES",
    "HasParamGroups",
    "LRRangeTest",
    "OneCycle",
    "Schedule",
    "WarmupCosineLR",
    "WarmupDecayLR",
    "WarmupLR",
    "add_tuning_arguments",
    "create",
    "lr_from_config",
    "scheduler_from_args",
]
