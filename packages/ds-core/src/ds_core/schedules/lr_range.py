"""The learning-rate range test: a rate that grows until training diverges."""

from __future__ import annotations

from collections.abc import Sequence

from ds_core.errors import ConfigError
from ds_core.schedules.base import HasParamGroups, Schedule, per_group

__all__ = ["LRRangeTest"]


class LRRangeTest(Schedule):
    """``lr = min_lr * (1 + step_rate * t / step_size)`` after t steps; in a staircase t / step_size is rounded down.

    Source: L. N. Smith, A disciplined approach to neural network hyper-parameters: part 1 (arXiv:1803.09820), section
    on the LR range test; names and scaling from DeepSpeed's scheduler documentation.

    Args:
        optimizer: object with ``param_groups``.
        lr_range_test_min_lr: rate at the start, one number or one per group.
        lr_range_test_step_size: steps over which the rate grows by `lr_range_test_step_rate` times the start.
        lr_range_test_step_rate: growth per interval, relative to the start.
        lr_range_test_staircase: grow at whole intervals only.
        last_batch_iteration: position to start from.

    Raises:
        ConfigError: a step size below 1, or a list that does not fit the groups.
    """

    def __init__(
        self,
        optimizer: HasParamGroups,
        lr_range_test_min_lr: float | Sequence[float] = 1e-3,
        lr_range_test_step_size: int = 2000,
        lr_range_test_step_rate: float = 1.0,
        lr_range_test_staircase: bool = False,
        last_batch_iteration: int = -1,
    ) -> None:
        super().__init__(optimizer, last_batch_iteration)
        if lr_range_test_step_size < 1:
            raise ConfigError(
                f"scheduler.params.lr_range_test_step_size must be at least 1, got {lr_range_test_step_size}."
            )
        self.min_lrs = per_group(self, "lr_range_test_min_lr", lr_range_test_min_lr)
        self.step_size = lr_range_test_step_size
        self.step_rate = lr_range_test_step_rate
        self.staircase = lr_range_test_staircase
        self._apply()

    def get_lr(self) -> list[float]:
        """Learning rate of each group at the current position."""
        t = self.last_batch_iteration + 1
        intervals = t // self.step_size if self.staircase else t / self.step_size
        return [min_lr * (1 + self.step_rate * intervals) for min_lr in self.min_lrs]
