"""What every schedule of ours shares: a position, learning rates as a function of it, and their way to the groups.

Note [Which step is which]
    ``last_batch_iteration`` is -1 before the first `Schedule.step` and counts calls from there, as in DeepSpeed's
    checkpoints. An engine steps the schedule after the optimizer, so update number k (from 0) runs with the rates of
    ``last_batch_iteration = k - 1``. LRRangeTest and OneCycle are functions of the number of finished calls,
    ``last_batch_iteration + 1``, so update k is their point k. The warm-ups are functions of ``last_batch_iteration``
    and stay at their start until the second call: updates 0 and 1 both run at the start. Both conventions were
    observed from the outside on DeepSpeed 0.19.8 and are kept, so that a curve and a checkpoint carry over.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ds_core.errors import CheckpointError, ConfigError, ModelError

__all__ = ["HasParamGroups", "Schedule", "group_value", "per_group", "set_group_value"]

Rates = float | Sequence[float]
"""One value for every parameter group, or a list with one per group."""


@runtime_checkable
class HasParamGroups(Protocol):
    """An optimizer, or whatever stands for one: all a schedule needs is its parameter groups."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


class Schedule(abc.ABC):
    """Sets the learning rate of every parameter group at construction and at each `step`.

    Args:
        optimizer: the object whose ``param_groups`` are set.
        last_batch_iteration: position to start from; -1 is before the first step.

    Raises:
        ModelError: `optimizer` has no ``param_groups``.
    """

    def __init__(self, optimizer: HasParamGroups, last_batch_iteration: int = -1) -> None:
        if not isinstance(optimizer, HasParamGroups):
            raise ModelError(f"a schedule needs an object with param_groups, got {type(optimizer).__name__}.")
        self.optimizer = optimizer
        self.last_batch_iteration = last_batch_iteration
        # "initial_lr" is torch's own mark for the rate before any schedule touched the group.
        self.base_lrs = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self._last_lr: list[float] = list(self.base_lrs)

    @abc.abstractmethod
    def get_lr(self) -> list[float]:
        """Learning rate of each group at the current position."""

    def get_last_lr(self) -> list[float]:
        """Learning rate of each group as last set."""
        return list(self._last_lr)

    def step(self, last_batch_iteration: int | None = None) -> None:
        """Moves one step on, or to `last_batch_iteration`, and sets the groups."""
        self.last_batch_iteration = (
            self.last_batch_iteration + 1 if last_batch_iteration is None else last_batch_iteration
        )
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """The position; everything else is in the config."""
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the position and sets the groups to its rates.

        Raises:
            CheckpointError: the state has no position.
        """
        position = state_dict.get("last_batch_iteration")
        if not isinstance(position, int) or isinstance(position, bool):
            raise CheckpointError(
                f"the state of {type(self).__name__} must have a whole number last_batch_iteration, got {position!r} "
                f"among the keys {', '.join(map(str, state_dict)) or 'none'}. Was it saved by another schedule?"
            )
        self.last_batch_iteration = position
        self._apply()

    def _apply(self) -> None:
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            set_group_value(group, "lr", lr)


def per_group(schedule: Schedule, name: str, value: Rates) -> list[float]:
    """One value per parameter group from a number or a list.

    Raises:
        ConfigError: a list whose length is not the number of groups.
    """
    count = len(schedule.optimizer.param_groups)
    if isinstance(value, (int, float)):
        return [float(value)] * count
    if len(value) != count:
        raise ConfigError(
            f"scheduler.params.{name} of {type(schedule).__name__} has {len(value)} values {list(value)!r}, but the "
            f"optimizer has {count} parameter groups. Give one number, or one per group."
        )
    return [float(item) for item in value]


def group_value(group: Mapping[str, Any], key: str) -> float:
    """A group's value as a float, whether it is kept as a number or a tensor."""
    return float(group[key])


def set_group_value(group: dict[str, Any], key: str, value: float) -> None:
    """Sets a group's value; a tensor is filled in place, because captured or compiled optimizers hold on to it."""
    if isinstance(group[key], (int, float)):
        group[key] = value
    else:
        group[key].fill_(value)
