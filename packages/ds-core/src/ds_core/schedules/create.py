"""Builds the schedule that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ds_core.errors import ConfigError, PluginConflictError, did_you_mean
from ds_core.optim.params import accepted, check, required
from ds_core.schedules.registry import REFUSED

if TYPE_CHECKING:
    from ds_core.plugins import PluginManager
    from ds_core.schedules.base import HasParamGroups

__all__ = ["create"]

WHERE = "scheduler.params"


def create(
    name: str,
    optimizer: HasParamGroups,
    params: Mapping[str, Any] | None = None,
    manager: PluginManager | None = None,
) -> Any:
    """The schedule called `name` (compared without case) on `optimizer`.

    A name no wheel brings is looked up among the classes of ``torch.optim.lr_scheduler``, which need a real
    ``torch.optim.Optimizer``.

    Args:
        name: as in ``scheduler.type``.
        optimizer: object with ``param_groups``.
        params: as in ``scheduler.params``.
        manager: plugin manager; the process-wide one by default.

    Raises:
        ConfigError: the name or a parameter is not known, is missing, or has a value that cannot be used.
        PluginConflictError: two wheels bring the name.
    """
    factory, owner = _factory(name, manager)
    wanted = dict(params or {})
    allowed = accepted(factory)
    if allowed is not None:
        wanted = check(WHERE, owner, allowed, wanted)
        missing = [key for key in required(factory) if key not in wanted]
        if missing:
            raise ConfigError(f"{WHERE} of {owner} must also give {', '.join(missing)}.")
    try:
        return factory(optimizer, **wanted)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{WHERE} of {owner}: {error}") from error


def _factory(name: str, manager: PluginManager | None) -> tuple[Any, str]:
    """What builds the schedule, and its name as it is spelled."""
    from ds_core.plugins import load_ref
    from ds_core.plugins import manager as installed

    provided = list((manager or installed()).collect("ds_schedulers"))
    named = [p for p in provided if p.item.name.lower() == name.lower()]
    if len(named) > 1:
        brought = " and ".join(f"{p.record.id} ({p.item.factory})" for p in named)
        raise PluginConflictError(
            f"scheduler.type {name!r} is brought by {brought}. Disable one: DS_PLUGINS_DISABLE={named[-1].record.id}"
        )
    if named:
        return load_ref(named[0].item.factory), named[0].item.name

    import torch

    schedulers = {
        key.lower(): found
        for key, found in vars(torch.optim.lr_scheduler).items()
        if isinstance(found, type) and issubclass(found, torch.optim.lr_scheduler.LRScheduler) and key[0] != "_"
    }
    del schedulers["lrscheduler"]
    reasons = {key.lower(): reason for key, reason in REFUSED.items()}
    if name.lower() in reasons:
        raise ConfigError(
            f"scheduler.type {name!r} cannot be built from a config: {reasons[name.lower()]}. Build it yourself and "
            "pass it as lr_scheduler= to initialize."
        )
    if name.lower() in schedulers:
        return schedulers[name.lower()], schedulers[name.lower()].__name__
    known = sorted({p.item.name for p in provided})
    torch_names = sorted(found.__name__ for key, found in schedulers.items() if key not in reasons)
    raise ConfigError(
        f"scheduler.type {name!r} is not known.{did_you_mean(name, [*known, *torch_names])} Installed: "
        f"{', '.join(known)}; from torch: {', '.join(torch_names)}."
    )
