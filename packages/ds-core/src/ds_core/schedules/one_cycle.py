"""The 1cycle policy: rate up and down once, momentum the other way, then a long decay."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from ds_core.errors import ConfigError
from ds_core.schedules.base import HasParamGroups, Schedule, per_group, set_group_value

__all__ = ["MOMENTUM_CEILING", "OneCycle"]

logger = logging.getLogger(__name__)

MOMENTUM_CEILING = 0.999
"""The decay phase raises momentum no further than this: an average with momentum of 1 or more never forgets."""


class _Half(NamedTuple):
    """One side of the cycle: its length in steps and how many stairs it has (0: smooth)."""

    steps: int
    stairs: int

    def height(self, walked: int) -> float:
        """How much of the side is done after `walked` steps, from 0 to 1, rounded down to a stair."""
        if self.stairs:
            return (walked * self.stairs // self.steps) / self.stairs
        return walked / self.steps


class OneCycle(Schedule):
    """Rates between two bounds over one cycle, then decay.

    With height h (0 at the start, 1 at the peak, 0 at the end): ``lr = min + (max - min) * h`` and
    ``momentum = max - (max - min) * h``. Past the cycle, d decay intervals in: ``lr = min / (1 + decay_lr_rate * d)``
    and ``momentum = max * (1 + decay_mom_rate * d)``, the latter at most `MOMENTUM_CEILING`.

    Momentum is ``betas[0]`` in groups that have ``betas`` and ``momentum`` in groups that have that; the second beta
    is left alone.

    Source: L. N. Smith, A disciplined approach to neural network hyper-parameters: part 1 (arXiv:1803.09820), section
    on cyclical learning rates and momentum; names from DeepSpeed's scheduler documentation.

    Args:
        optimizer: object with ``param_groups``.
        cycle_min_lr: lower bound and start, one number or one per group.
        cycle_max_lr: peak, one number or one per group.
        decay_lr_rate: decay of the rate per interval after the cycle.
        cycle_first_step_size: steps up.
        cycle_second_step_size: steps down; as many as up when None.
        cycle_first_stair_count: stairs on the way up; 0 is smooth.
        cycle_second_stair_count: stairs on the way down; as many as up when None.
        decay_step_size: steps per decay interval; 0 keeps the end of the cycle forever.
        cycle_momentum: cycle momentum too.
        cycle_min_mom: momentum at the peak of the rate, one number or one per group.
        cycle_max_mom: momentum at both ends, one number or one per group.
        decay_mom_rate: growth of momentum per interval after the cycle.
        last_batch_iteration: position to start from.

    Raises:
        ConfigError: bounds the wrong way round, a negative or zero size, or a list that does not fit the groups.
    """

    def __init__(
        self,
        optimizer: HasParamGroups,
        cycle_min_lr: float | Sequence[float],
        cycle_max_lr: float | Sequence[float],
        decay_lr_rate: float = 0.0,
        cycle_first_step_size: int = 2000,
        cycle_second_step_size: int | None = None,
        cycle_first_stair_count: int = 0,
        cycle_second_stair_count: int | None = None,
        decay_step_size: int = 0,
        cycle_momentum: bool = True,
        cycle_min_mom: float | Sequence[float] = 0.8,
        cycle_max_mom: float | Sequence[float] = 0.9,
        decay_mom_rate: float = 0.0,
        last_batch_iteration: int = -1,
    ) -> None:
        super().__init__(optimizer, last_batch_iteration)
        second = cycle_first_step_size if cycle_second_step_size is None else cycle_second_step_size
        stairs = cycle_first_stair_count if cycle_second_stair_count is None else cycle_second_stair_count
        _at_least("cycle_first_step_size", cycle_first_step_size, 1)
        _at_least("cycle_second_step_size", second, 1)
        _at_least("cycle_first_stair_count", cycle_first_stair_count, 0)
        _at_least("cycle_second_stair_count", stairs, 0)
        _at_least("decay_step_size", decay_step_size, 0)
        self.up = _Half(cycle_first_step_size, cycle_first_stair_count)
        self.down = _Half(second, stairs)
        self.min_lrs = per_group(self, "cycle_min_lr", cycle_min_lr)
        self.max_lrs = per_group(self, "cycle_max_lr", cycle_max_lr)
        self.min_moms = per_group(self, "cycle_min_mom", cycle_min_mom)
        self.max_moms = per_group(self, "cycle_max_mom", cycle_max_mom)
        _ordered("lr", self.min_lrs, self.max_lrs)
        _ordered("mom", self.min_moms, self.max_moms)
        self.decay_step_size = decay_step_size
        self.decay_lr_rate = decay_lr_rate
        self.decay_mom_rate = decay_mom_rate
        self.cycle_momentum = cycle_momentum and self._has_momentum()
        if not decay_step_size and (decay_lr_rate or decay_mom_rate):
            logger.warning("OneCycle: decay rates have no effect while decay_step_size is 0; set it to a step count.")
        self._apply()

    def get_lr(self) -> list[float]:
        """Learning rate of each group at the current position."""
        decay = 1 + self.decay_lr_rate * self._decay_intervals()
        bounds = zip(self.min_lrs, self.max_lrs, strict=True)
        return [(low + (high - low) * self._height()) / decay for low, high in bounds]

    def get_mom(self) -> list[float] | None:
        """Momentum of each group at the current position; None when momentum is not cycled."""
        if not self.cycle_momentum:
            return None
        growth = 1 + self.decay_mom_rate * self._decay_intervals()
        bounds = zip(self.min_moms, self.max_moms, strict=True)
        height = self._height()
        return [min((high - (high - low) * height) * growth, max(high, MOMENTUM_CEILING)) for low, high in bounds]

    def _apply(self) -> None:
        super()._apply()
        for group, mom in zip(self.optimizer.param_groups, self.get_mom() or (), strict=False):
            if "betas" in group:
                group["betas"] = _with_first(group["betas"], mom)
            if "momentum" in group:
                set_group_value(group, "momentum", mom)

    def _height(self) -> float:
        t = self.last_batch_iteration + 1
        if t <= self.up.steps:
            return self.up.height(t)
        return self.down.height(max(self.up.steps + self.down.steps - t, 0))

    def _decay_intervals(self) -> float:
        past = self.last_batch_iteration + 1 - self.up.steps - self.down.steps
        return max(past, 0) / self.decay_step_size if self.decay_step_size else 0.0

    def _has_momentum(self) -> bool:
        found = any("betas" in group or "momentum" in group for group in self.optimizer.param_groups)
        if not found:
            logger.warning("OneCycle: the optimizer has neither betas nor momentum; cycle_momentum has no effect.")
        return found


def _with_first(betas: Sequence[Any], first: float) -> tuple[Any, ...]:
    """The betas with the first replaced; a tensor is filled in place."""
    if isinstance(betas[0], (int, float)):
        return (first, *betas[1:])
    betas[0].fill_(first)
    return tuple(betas)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"scheduler.params.{name} of OneCycle must be at least {least}, got {value}.")


def _ordered(kind: str, low: list[float], high: list[float]) -> None:
    for index, (small, large) in enumerate(zip(low, high, strict=True)):
        if small > large:
            raise ConfigError(
                f"scheduler.params.cycle_min_{kind} of OneCycle must not exceed cycle_max_{kind}, got {small} and "
                f"{large} for parameter group {index}."
            )
