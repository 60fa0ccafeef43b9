"""What other stages would take, and the smallest change that makes a job fit a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ds_core.config import RawConfig
from ds_core.config.facts import Origin
from ds_core.errors import ConfigError, ModelError
from ds_zero.estimate.estimator import Estimate, estimate

__all__ = ["STAGES", "Change", "other_stages", "smallest_change"]

STAGES = (0, 1, 2, 3)

MOST_RANKS = 65_536
"""Ranks that are tried at most."""


@dataclass(frozen=True, slots=True)
class Change:
    """Settings other than the job's, and what it would take with them.

    Attributes:
        what: the settings as one would write them.
        estimate: None when the job refuses them.
        refusal: why, then.
    """

    what: str
    estimate: Estimate | None
    refusal: str = ""


def _try(what: str, model: nn.Module, raw: RawConfig, world: int, settings: dict[str, Any], **options: Any) -> Change:
    try:
        for key, value in settings.items():
            raw = raw.override(key, value, Origin("argument", "tried by the plan"))
        return Change(what, estimate(model, raw, world, **options))
    except (ConfigError, ModelError) as error:
        return Change(what, None, str(error).splitlines()[0])


def other_stages(model: nn.Module, raw: RawConfig, world: int, stage: int, **options: Any) -> list[Change]:
    """What the job would take at each stage but `stage`."""
    key = "zero_optimization.stage"
    return [_try(f"stage {n}", model, raw, world, {key: n}, **options) for n in STAGES if n != stage]


def smallest_change(
    model: nn.Module, raw: RawConfig, world: int, stage: int, device_bytes: int, **options: Any
) -> Change | None:
    """The first of these changes with which the job fits `device_bytes`; None when none does.

    Tried in this order: a higher stage, less gathered ahead, the optimizer and then parameters in host memory, more
    ranks. Settings that this installation refuses are passed over.
    """
    for what, settings, ranks in _changes(stage, world):
        change = _try(what, model, raw, ranks, settings, **options)
        if change.estimate is not None and change.estimate.peak_bytes <= device_bytes:
            return change
    return None


def _changes(stage: int, world: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    zero = "zero_optimization"
    for higher in STAGES[stage + 1 :]:
        yield f"{zero}.stage {higher}", {f"{zero}.stage": higher}, world
    frugal = {f"{zero}.stage": 3, f"{zero}.prefetch_bucket_size": 0, f"{zero}.overlap_comm": False}
    yield _said(frugal), frugal, world
    for higher in STAGES[max(stage, 1) :]:
        settings: dict[str, Any] = {f"{zero}.stage": higher, f"{zero}.offload_optimizer": {"device": "cpu"}}
        yield _said(settings), settings, world
    offloaded = {
        **frugal,
        f"{zero}.offload_optimizer": {"device": "cpu"},
        f"{zero}.offload_param": {"device": "cpu"},
    }
    yield _said(offloaded), offloaded, world
    ranks = 2 * world
    while ranks <= MOST_RANKS:
        yield f"{zero}.stage 3 on {ranks} ranks", {f"{zero}.stage": 3}, ranks
        ranks *= 2


def _said(settings: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return str(value["device"]) if isinstance(value, dict) else str(value).lower()

    return ", ".join(f"{key}{'.device' * isinstance(value, dict)} {text(value)}" for key, value in settings.items())
