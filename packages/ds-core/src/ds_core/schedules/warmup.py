"""Warm-up from a small rate to the full one, then constant, linear or cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ds_core.errors import ConfigError
from ds_core.schedules.base import HasParamGroups, Schedule, per_group

__all__ = ["WarmupCosineLR", "WarmupDecayLR", "WarmupLR"]

WarmupType = Literal["log", "linear"]


class _Warmup:
    """Share of the way from the first rate to the full one: ``t / n``, or ``log(t + 1) / log(n)``; 1 from n on.

    Source: P. Goyal et al., Accurate, large minibatch SGD (arXiv:1706.02677), section 2.2, for linear; DeepSpeed's
    scheduler documentation for log.
    """

    def __init__(self, steps: int, kind: str) -> None:
        if steps <= 0:
            raise ConfigError(f"scheduler.params.warmup_num_steps must be a positive whole number, got {steps}.")
        if kind not in ("log", "linear"):
            raise ConfigError(f"scheduler.params.warmup_type must be 'log' or 'linear', got {kind!r}.")
        self.steps = steps
        self.kind = kind

    def share(self, t: int) -> float:
        """From 0 to 1 at step `t`."""
        if t >= self.steps:
            return 1.0
        if self.kind == "linear":
            return t / self.steps
        return math.log(t + 1) / math.log(self.steps) if self.steps > 1 else 0.0


class WarmupLR(Schedule):
    """``min + (max - min) * warm-up share``, then ``max``.

    Args:
        optimizer: object with ``param_groups``.
        warmup_min_lr: rate at the start, one number or one per group.
        warmup_max_lr: rate after the warm-up, one number or one per group; each group's own rate when None.
        warmup_num_steps: steps of the warm-up.
        warmup_type: ``"log"`` or ``"linear"``.
        last_batch_iteration: position to start from.

    Raises:
        ConfigError: a step count that is not positive, an unknown type, or a list that does not fit the groups.
    """

    def __init__(
        self,
        optimizer: HasParamGroups,
        warmup_min_lr: float | Sequence[float] = 0.0,
        warmup_max_lr: float | Sequence[float] | None = None,
        warmup_num_steps: int = 1000,
        warmup_type: WarmupType = "log",
        last_batch_iteration: int = -1,
    ) -> None:
        super().__init__(optimizer, last_batch_iteration)
        self._warmup = _Warmup(warmup_num_steps, warmup_type)
        self.min_lrs = per_group(self, "warmup_min_lr", warmup_min_lr)
        self.max_lrs = self.base_lrs if warmup_max_lr is None else per_group(self, "warmup_max_lr", warmup_max_lr)
        self._apply()

    def get_lr(self) -> list[float]:
        """Learning rate of each group at the current position."""
        share = self._share(max(self.last_batch_iteration, 0))
        # Written as a weighted mean, so that a share of 1 gives exactly the maximum.
        return [low * (1 - share) + high * share for low, high in zip(self.min_lrs, self.max_lrs, strict=True)]

    def _share(self, t: int) -> float:
        return self._warmup.share(t)


class WarmupDecayLR(WarmupLR):
    """`WarmupLR`, then a straight line down to ``warmup_min_lr`` at step ``total_num_steps``.

    Args:
        optimizer: object with ``param_groups``.
        total_num_steps: step at which the rate is back at the minimum.
        warmup_min_lr: rate at the start and at the end, one number or one per group.
        warmup_max_lr: rate after the warm-up, one number or one per group; each group's own rate when None.
        warmup_num_steps: steps of the warm-up.
        warmup_type: ``"log"`` or ``"linear"``.
        last_batch_iteration: position to start from.

    Raises:
        ConfigError: as for `WarmupLR`, and when the warm-up is longer than the whole.
    """

    def __init__(
        self,
        optimizer: HasParamGroups,
        total_num_steps: int,
        warmup_min_lr: float | Sequence[float] = 0.0,
        warmup_max_lr: float | Sequence[float] | None = 0.001,
        warmup_num_steps: int = 1000,
        warmup_type: WarmupType = "log",
        last_batch_iteration: int = -1,
    ) -> None:
        _warmup_fits("WarmupDecayLR", warmup_num_steps, total_num_steps)
        self.total_num_steps = total_num_steps
        super().__init__(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, last_batch_iteration)

    def _share(self, t: int) -> float:
        if t < self._warmup.steps:
            return self._warmup.share(t)
        left, whole = self.total_num_steps - t, self.total_num_steps - self._warmup.steps
        return max(left, 0) / whole if whole else 0.0


class WarmupCosineLR(Schedule):
    """Ratios of each group's own rate: warm-up from ``warmup_min_ratio`` to 1, then a half cosine down.

    After the warm-up, ``cos_min_ratio + (1 - cos_min_ratio) * (1 + cos(pi * p)) / 2`` with p from just above 0 to 1,
    which is reached at step ``total_num_steps - 1``.

    Source: I. Loshchilov and F. Hutter, SGDR (arXiv:1608.03983), equation 5, one cycle.

    Args:
        optimizer: object with ``param_groups``.
        total_num_steps: length of the whole schedule.
        warmup_min_ratio: ratio at the start.
        warmup_num_steps: steps of the warm-up.
        cos_min_ratio: ratio at the end.
        warmup_type: ``"log"`` or ``"linear"``.
        last_batch_iteration: position to start from.

    Raises:
        ConfigError: a step count that is not positive, an unknown type, or a warm-up longer than the whole.
    """

    def __init__(
        self,
        optimizer: HasParamGroups,
        total_num_steps: int,
        warmup_min_ratio: float = 0.0,
        warmup_num_steps: int = 1000,
        cos_min_ratio: float = 1e-4,
        warmup_type: WarmupType = "log",
        last_batch_iteration: int = -1,
    ) -> None:
        super().__init__(optimizer, last_batch_iteration)
        self._warmup = _Warmup(warmup_num_steps, warmup_type)
        _warmup_fits("WarmupCosineLR", warmup_num_steps, total_num_steps)
        self.total_num_steps = total_num_steps
        self.warmup_min_ratio = warmup_min_ratio
        self.cos_min_ratio = cos_min_ratio
        self._apply()

    def get_lr(self) -> list[float]:
        """Learning rate of each group at the current position."""
        ratio = self._ratio(max(self.last_batch_iteration, 0))
        return [lr * ratio for lr in self.base_lrs]

    def _ratio(self, t: int) -> float:
        if t < self._warmup.steps:
            return self.warmup_min_ratio + (1 - self.warmup_min_ratio) * self._warmup.share(t)
        whole = self.total_num_steps - self._warmup.steps
        progress = min((t - self._warmup.steps + 1) / whole, 1.0) if whole else 1.0
        return self.cos_min_ratio + (1 - self.cos_min_ratio) * (1 + math.cos(math.pi * progress)) / 2


def _warmup_fits(owner: str, warmup_num_steps: int, total_num_steps: int) -> None:
    if warmup_num_steps > total_num_steps:
        raise ConfigError(
            f"scheduler.params.warmup_num_steps of {owner} is {warmup_num_steps}, more than total_num_steps "
            f"{total_num_steps}: the decay would never begin. Lower warmup_num_steps (its default is 1000) or raise "
            "total_num_steps."
        )
