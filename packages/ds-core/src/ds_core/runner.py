"""The runner turns micro-batches into gradients; the plain loop is the default, pipelines bring their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ds_core.errors import DataError, EngineError

if TYPE_CHECKING:
    from ds_core.engine import Engine

__all__ = ["PlainRunner", "Runner", "loss_of"]


class Runner(Protocol):
    """Runs the micro-batches of one step, or of one evaluation."""

    def train_batch(self, engine: Engine, batches: Iterator[Any]) -> torch.Tensor:
        """Forward and backward over every micro-batch of a step, then the step. Returns the mean loss, 0-dim."""

    def eval_batch(self, engine: Engine, batches: Iterator[Any]) -> torch.Tensor:
        """Forward over as many micro-batches, without gradients. Returns the mean loss, 0-dim."""


class PlainRunner:
    """One micro-batch after another through the whole module."""

    def train_batch(self, engine: Engine, batches: Iterator[Any]) -> torch.Tensor:
        """See `Runner.train_batch`."""
        losses = []
        for _ in range(engine.gradient_accumulation_steps()):
            loss = loss_of(_call(engine, _next(batches)))
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def eval_batch(self, engine: Engine, batches: Iterator[Any]) -> torch.Tensor:
        """See `Runner.eval_batch`."""
        was_training = engine.module.training
        engine.eval()
        try:
            with torch.no_grad():
                count = engine.gradient_accumulation_steps()
                return torch.stack([loss_of(_call(engine, _next(batches))) for _ in range(count)]).mean()
        finally:
            engine.train(was_training)


def _next(batches: Iterator[Any]) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise DataError(
            "the data iterator ended inside a step; give train_batch an endless iterator (ds_core.RepeatingLoader)"
        ) from None


def _call(engine: Engine, batch: Any) -> Any:
    batch = torch.utils._pytree.tree_map(lambda value: _to(engine.device, value), batch)
    if isinstance(batch, Mapping):
        return engine(**batch)
    if isinstance(batch, tuple | list):
        return engine(*batch)
    return engine(batch)


def _to(device: torch.device, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.device.type != device.type:
        return value.to(device, non_blocking=True)
    return value


def loss_of(output: Any) -> torch.Tensor:
    """The scalar loss in a module's output: the output itself, its ``loss``, or its first element.

    Raises:
        EngineError: there is no scalar tensor in any of these places.
    """
    if isinstance(output, Mapping):
        candidate = output.get("loss")
    elif isinstance(output, tuple | list):
        candidate = output[0] if output else None
    else:
        candidate = getattr(output, "loss", output)
    if not isinstance(candidate, torch.Tensor) or candidate.numel() != 1:
        raise EngineError(
            "train_batch needs the module to return a scalar loss (alone, first, or as .loss), got "
            f"{type(output).__name__}"
        )
    return candidate.reshape(())
