"""Builds the optimizer that a config names, from the best implementation installed for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ds_core.errors import ConfigError, DsError, MissingWheelError, PluginConflictError, did_you_mean
from ds_core.hooks import OptimizerEntry
from ds_core.optim.params import accepted, check, required
from ds_core.optim.registry import ENTRIES, REFUSED, TORCH_FACTORIES, UNRELEASED

if TYPE_CHECKING:
    import torch

    from ds_core.plugins import PluginManager, Provided

__all__ = ["Created", "create", "is_elementwise"]

WHERE = "optimizer.params"


class Created(NamedTuple):
    """An optimizer and the entry that built it (`entry.elementwise` says whether flat shards keep its numbers)."""

    optimizer: torch.optim.Optimizer
    entry: OptimizerEntry


def create(
    name: str,
    param_groups: Iterable[Any],
    params: Mapping[str, Any] | None = None,
    device_type: str = "cpu",
    manager: PluginManager | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Created:
    """The optimizer called `name` over `param_groups`.

    Among the implementations that installed wheels bring for the name (compared without case) and the device type,
    the highest priority wins; ``"torch_adam": true`` in the parameters takes torch's. A name no wheel brings is looked
    up among the classes of ``torch.optim``.

    Args:
        name: as in ``optimizer.type``.
        param_groups: tensors, named tensors or group dicts, as torch takes them.
        params: as in ``optimizer.params``.
        device_type: torch device type the parameters live on.
        manager: plugin manager; the process-wide one by default.
        defaults: parameters that count where `params` does not say them and the implementation takes them.

    Raises:
        MissingWheelError: the name belongs to a wheel that is not installed.
        ConfigError: the name or a parameter is not known, or a value cannot be used.
        PluginConflictError: two wheels bring the name with equal priority.
        ModelError: there is nothing to optimize.
    """
    from ds_core.plugins import load_ref
    from ds_core.plugins import manager as installed

    wanted = dict(params or {})
    _refuse_foreign_keys(wanted)
    provided = (manager or installed()).collect("ds_optimizers")
    entry = _select(name, provided, device_type, only_torch=_pop_torch_adam(name, wanted))
    factory: Any = load_ref(entry.factory)
    allowed = accepted(factory)
    if allowed is not None:
        wanted = {**{key: value for key, value in (defaults or {}).items() if key in allowed}, **wanted}
        wanted = check(WHERE, entry.name, allowed, wanted)
        missing = [key for key in required(factory) if key not in wanted]
        if missing:
            raise ConfigError(f"{WHERE} of {entry.name} must also give {', '.join(missing)}.")
    return Created(_call(factory, entry, param_groups, wanted), entry)


def is_elementwise(optimizer: torch.optim.Optimizer) -> bool | None:
    """Whether every element is updated from its own gradient only; None when the class is not known.

    Known are the exact classes of ``torch.optim``, because a subclass may do anything in ``step``, and every optimizer
    that takes flat runs, because runs are cut anywhere.
    """
    import torch

    from ds_core.optim.flat import supports_flat

    if supports_flat(optimizer):
        return True
    known = {getattr(torch.optim, entry.name, None): entry.elementwise for entry in ENTRIES}
    return known.get(type(optimizer))


def _call(
    factory: Callable[..., Any], entry: OptimizerEntry, groups: Iterable[Any], params: dict[str, Any]
) -> torch.optim.Optimizer:
    """Calls the factory; a value it refuses is the config's fault and says so."""
    try:
        optimizer: torch.optim.Optimizer = factory(groups, **params)
    except DsError:
        raise
    except ValueError as error:
        raise ConfigError(f"{WHERE} of {entry.name}: {error}") from error
    return optimizer


def _refuse_foreign_keys(params: Mapping[str, Any]) -> None:
    if "max_grad_norm" in params:
        raise ConfigError(
            f"{WHERE}.max_grad_norm ({params['max_grad_norm']!r}) is not an optimizer's parameter: gradients are "
            "clipped by the engine. Remove it and set gradient_clipping at the top level."
        )
    if "legacy_fusion" in params:
        raise ConfigError(
            f"{WHERE}.legacy_fusion chooses between two of DeepSpeed's kernels; here each optimizer has one "
            "implementation per device, so it could not change anything. Remove it."
        )


def _pop_torch_adam(name: str, params: dict[str, Any]) -> bool:
    if "torch_adam" not in params or name.lower() not in ("adam", "adamw"):
        return False
    only_torch = params.pop("torch_adam")
    if not isinstance(only_torch, bool):
        raise ConfigError(f"{WHERE}.torch_adam must be true or false, got {only_torch!r}.")
    return only_torch


def _select(
    name: str, provided: Iterable[Provided[OptimizerEntry]], device_type: str, *, only_torch: bool
) -> OptimizerEntry:
    everything = list(provided)
    named = [p for p in everything if p.item.name.lower() == name.lower()]
    if not named:
        return _not_provided(name, sorted({p.item.name for p in everything}))
    if only_torch:
        named = [p for p in named if p.item.factory.startswith(TORCH_FACTORIES)]
    usable = [p for p in named if not p.item.device_types or device_type in p.item.device_types]
    if not usable:
        serves = sorted({device for p in named for device in p.item.device_types})
        raise ConfigError(
            f"optimizer.type {name!r} has no implementation for device type {device_type!r}; installed ones serve "
            f"{', '.join(serves) or 'none'}."
        )
    best = max(p.item.priority for p in usable)
    winners = [p for p in usable if p.item.priority == best]
    if len(winners) > 1:
        brought = " and ".join(f"{p.record.id} ({p.item.factory})" for p in winners)
        raise PluginConflictError(
            f"optimizer.type {name!r} on {device_type!r} is brought with priority {best} by {brought}. "
            f"Disable one: DS_PLUGINS_DISABLE={winners[-1].record.id}"
        )
    return winners[0].item


def _not_provided(name: str, known: list[str]) -> OptimizerEntry:
    """The entry of a torch class that is not listed, or the error that says what the name is."""
    unreleased = {key.lower(): (key, wheel) for key, wheel in UNRELEASED.items()}
    if name.lower() in unreleased:
        spelled, wheel = unreleased[name.lower()]
        raise MissingWheelError(
            f"optimizer.type {spelled!r} comes with the wheel {wheel}, which is not installed and not released yet; "
            f"when it is: pip install {wheel}. Until then use one of {', '.join(known)}."
        )
    refused = {key.lower(): (key, reason) for key, reason in REFUSED.items()}
    if name.lower() in refused:
        spelled, reason = refused[name.lower()]
        raise ConfigError(f"optimizer.type {spelled!r} cannot be built from a config: {reason}.")

    from ds_core.optim.torch_optim import unlisted

    found = unlisted(name)
    if found is None:
        names = [*known, *UNRELEASED, *REFUSED]
        raise ConfigError(
            f"optimizer.type {name!r} is not known.{did_you_mean(name, names)} Installed: {', '.join(known)}."
        )
    return found
