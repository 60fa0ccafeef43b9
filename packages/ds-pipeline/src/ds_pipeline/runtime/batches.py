"""The micro-batches of a step on a rank that needs them: pulled in order, each kept until every stage here took it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ds_core.errors import DataError
from ds_pipeline.stage import Staged

__all__ = ["MicroBatches"]


class MicroBatches:
    """Inputs and targets by micro-batch.

    Args:
        batches: where they come from.
        module: divides them.
        device: where they go.
        batch_fn: changes each before that; None does not.
        uses: how often each is asked for: once for the first stage and once for the last, as far as they are here.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        module: Staged,
        device: torch.device,
        batch_fn: Callable[[Any], Any] | None,
        uses: int,
    ) -> None:
        self._batches: Iterator[Any] = batches
        self._module: Staged = module
        self._device: torch.device = device
        self._batch_fn: Callable[[Any], Any] | None = batch_fn
        self._uses: int = uses
        self._pulled: int = 0
        self._held: dict[int, tuple[Any, Any, int]] = {}

    def take(self, micro_batch: int) -> tuple[Any, Any]:
        """Inputs and targets.

        Raises:
            DataError: the iterator ended.
        """
        while self._pulled <= micro_batch:
            self._held[self._pulled] = (*self._next(), self._uses)
            self._pulled += 1
        inputs, targets, left = self._held.pop(micro_batch)
        if left > 1:
            self._held[micro_batch] = (inputs, targets, left - 1)
        return inputs, targets

    def _next(self) -> tuple[Any, Any]:
        try:
            batch = next(self._batches)
        except StopIteration:
            raise DataError(
                f"the data iterator ended after {self._pulled} micro-batches of this step; give train_batch and "
                "eval_batch an endless iterator on ranks with the first or last stage (ds_core.RepeatingLoader), or "
                "num_micro_batches= for a shorter evaluation"
            ) from None
        if self._batch_fn is not None:
            batch = self._batch_fn(batch)
        return self._module.split_batch(tree_map(self._to_device, batch))

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.device.type != self._device.type:
            return value.to(self._device, non_blocking=True)
        return value
