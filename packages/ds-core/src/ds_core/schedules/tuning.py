"""Command-line flags for the schedules, and what a scheduler section says about the rate."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ds_core.errors import ConfigError, did_you_mean
from ds_core.optim.params import accepted
from ds_core.schedules.lr_range import LRRangeTest
from ds_core.schedules.one_cycle import OneCycle
from ds_core.schedules.registry import VALID_LR_SCHEDULES
from ds_core.schedules.warmup import WarmupCosineLR, WarmupDecayLR, WarmupLR

__all__ = ["add_tuning_arguments", "lr_from_config", "scheduler_from_args"]

_CLASSES = {cls.__name__: cls for cls in (LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR)}
_NOT_FLAGS = ("last_batch_iteration",)
_PEAK_KEYS = {
    "LRRangeTest": "lr_range_test_min_lr",
    "OneCycle": "cycle_max_lr",
    "WarmupLR": "warmup_max_lr",
    "WarmupDecayLR": "warmup_max_lr",
}


def add_tuning_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with a flag for every parameter of every schedule, and ``--lr_schedule``.

    A flag that is not given stays None, and the schedule's own default holds.
    """
    group = parser.add_argument_group("learning-rate schedule")
    group.add_argument("--lr_schedule", choices=VALID_LR_SCHEDULES, default=None, help="name of the schedule")
    for name, owners in _flags().items():
        of = "of " + ", ".join(owners)
        wanted = (accepted(_CLASSES[owners[0]]) or {})[name]
        if wanted is bool:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=of)
        elif name == "warmup_type":
            group.add_argument(f"--{name}", choices=("log", "linear"), default=None, help=of)
        else:
            kind = int if name.endswith(("_size", "_count", "_steps")) else float
            group.add_argument(f"--{name}", type=kind, default=None, help=of)
    return parser


def scheduler_from_args(args: argparse.Namespace) -> dict[str, Any] | None:
    """A ``scheduler`` section from the flags that were given, or None without ``--lr_schedule``.

    Raises:
        ConfigError: a flag was given that the chosen schedule does not take.
    """
    given = {name: value for name, value in vars(args).items() if name in _flags() and value is not None}
    chosen = getattr(args, "lr_schedule", None)
    if chosen is None:
        if given:
            raise ConfigError(f"--{next(iter(given))} needs --lr_schedule, one of {', '.join(VALID_LR_SCHEDULES)}.")
        return None
    allowed = accepted(_CLASSES[chosen]) or {}
    for name in given:
        if name not in allowed:
            raise ConfigError(f"--{name} is a flag of {', '.join(_flags()[name])}, not of {chosen}.")
    return {"type": chosen, "params": given}


def lr_from_config(section: Mapping[str, Any]) -> float | list[float] | None:
    """The rate a ``scheduler`` section names: the peak, or the start of a range test; None when it names none.

    Raises:
        ConfigError: the section has no type, or one that is not among `VALID_LR_SCHEDULES`.
    """
    name = section.get("type")
    if not isinstance(name, str) or name not in _CLASSES:
        raise ConfigError(
            f"scheduler.type must be one of {', '.join(VALID_LR_SCHEDULES)}, got {name!r}."
            f"{did_you_mean(str(name), VALID_LR_SCHEDULES)}"
        )
    rate: float | list[float] | None = (section.get("params") or {}).get(_PEAK_KEYS.get(name, ""))
    return rate


def _flags() -> dict[str, list[str]]:
    """Every flag, with the schedules that take it."""
    found: dict[str, list[str]] = {}
    for owner, cls in _CLASSES.items():
        for name in accepted(cls) or {}:
            if name not in _NOT_FLAGS:
                found.setdefault(name, []).append(owner)
    return found
