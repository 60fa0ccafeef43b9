"""Which optimizers continue each other's states, and what of saved hyperparameters they take.

torch's classes, those made of the op table and those with packed states are one family where they keep the same states
for the same update rule: a run saved with one goes on with another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ds_core.errors import CheckpointError, ConfigError

__all__ = ["check_family", "family", "hyperparameters"]

HERE_ONLY = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})
"""Which code runs, and not what it computes; that is this engine's business."""

NEUTRAL: Mapping[str, Any] = {
    "amsgrad": False,
    "bias_correction": True,
    "dampening": 0,
    "maximize": False,
    "nesterov": False,
}
"""What an optimizer without such a hyperparameter does."""

DECOUPLED = ("decoupled_weight_decay", "adamw")
"""torch's name, and the op table's."""


def check_family(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuses the states of another update rule.

    Args:
        saved: a checkpoint's ``optimizer``: its type, None where it is not known, and its groups.
        optimizer: the one that is to go on.

    Raises:
        CheckpointError: another type, another number of groups, or a hyperparameter this optimizer has not.
    """
    own, theirs = type(optimizer).__name__, saved["type"]
    groups: Sequence[Mapping[str, Any]] = saved["groups"]
    rules = saved.get("family") or (theirs and _rule(theirs, groups)), family(optimizer)
    if theirs is not None and rules[0] != rules[1]:
        raise CheckpointError(
            f"the checkpoint's optimizer is {_told(theirs, rules[0])}, this engine's is {_told(own, rules[1])}; "
            "use the same optimizer, or pass load_optimizer_states=False"
        )
    if len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the checkpoint's optimizer has {len(groups)} parameter groups, this engine's has "
            f"{len(optimizer.param_groups)}; make the same groups, or pass load_optimizer_states=False"
        )
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        for key, neutral in NEUTRAL.items():
            if key in values and key not in group and values[key] != neutral:
                raise CheckpointError(
                    f"the checkpoint's optimizer has {key} {values[key]!r}, which this engine's {own} has not; "
                    "use the optimizer that was used, or pass load_optimizer_states=False"
                )
        try:
            _check_ranges(optimizer, {**group, **hyperparameters(values, group)})
        except ConfigError as error:
            raise CheckpointError(f"the checkpoint's optimizer cannot go on as this engine's {own}: {error}") from error


def hyperparameters(saved: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """What `group` takes from the group that was saved in its place."""
    found: dict[str, Any] = {}
    for key, value in saved.items():
        if key in HERE_ONLY or (key not in group and (key in NEUTRAL or key in DECOUPLED)):
            continue
        found[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    return found


def _check_ranges(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
    from ds_core.optim.op_base import OpOptimizer

    if isinstance(optimizer, OpOptimizer):
        optimizer.check_group(group)


def family(optimizer: torch.optim.Optimizer) -> str:
    """The name of the update rule, as torch's class for it is called."""
    from ds_core.optim.op_base import OpOptimizer

    name = optimizer.config_name if isinstance(optimizer, OpOptimizer) else type(optimizer).__name__
    return _rule(name, optimizer.param_groups)


def _rule(name: str, groups: Sequence[Mapping[str, Any]]) -> str:
    if name not in ("Adam", "AdamW"):
        return name
    first = groups[0] if groups else {}
    flag = next((bool(first[key]) for key in DECOUPLED if key in first), name == "AdamW")
    return "AdamW" if flag else "Adam"


def _told(name: str, rule: str) -> str:
    return name if rule == name else f"{name} ({rule})"
