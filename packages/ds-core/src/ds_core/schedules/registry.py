"""The schedules that ds-core brings, as data."""

from __future__ import annotations

from collections.abc import Mapping

from ds_core.hooks import SchedulerEntry

__all__ = ["ENTRIES", "REFUSED", "VALID_LR_SCHEDULES"]

ENTRIES: tuple[SchedulerEntry, ...] = (
    SchedulerEntry("LRRangeTest", "ds_core.schedules.lr_range:LRRangeTest"),
    SchedulerEntry("OneCycle", "ds_core.schedules.one_cycle:OneCycle"),
    SchedulerEntry("WarmupLR", "ds_core.schedules.warmup:WarmupLR"),
    SchedulerEntry("WarmupDecayLR", "ds_core.schedules.warmup:WarmupDecayLR"),
    SchedulerEntry("WarmupCosineLR", "ds_core.schedules.warmup:WarmupCosineLR"),
)

VALID_LR_SCHEDULES: list[str] = [entry.name for entry in ENTRIES]
"""Names of the schedules above; a list, because callers of DeepSpeed's constant of this name expect one."""

_FUNCTIONS = "it takes Python functions, which a config cannot hold"
_OTHERS = "it is made of other schedulers, which a config cannot hold"
REFUSED: Mapping[str, str] = {
    "LambdaLR": _FUNCTIONS,
    "MultiplicativeLR": _FUNCTIONS,
    "ChainedScheduler": _OTHERS,
    "SequentialLR": _OTHERS,
    "ReduceLROnPlateau": "its step() needs a validation metric, which the engine does not have",
}
"""Classes of torch.optim.lr_scheduler that cannot be built from a config, each with the reason."""
