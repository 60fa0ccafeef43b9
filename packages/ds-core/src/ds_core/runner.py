"""The runner turns micro-batches into gradients; the plain loop is the default, pipelines bring their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ds_core import comm
from ds_core.errors import DataError, EngineError

if TYPE_CHECKING:
    from ds_core.engine import Engine

__all__ = ["PlainRunner", "Runner", "loss_of"]


class Runner(Protocol):
    """Runs the micro-batches of one step, or of one evaluation."""

    @property
    def is_exclusive(self) -> bool:
        """Whether only `train_batch` and `eval_batch` may run the module: forward, backward and step are refused."""

    @property
    def needs_batches(self) -> bool:
        """Whether this rank reads micro-batches; else ``train_batch(None)`` will do here."""

    def train_batch(self, engine: Engine, batches: Iterator[Any]) -> torch.Tensor:
        """Forward and backward over every micro-batch of a step, then the step. Called on all ranks.

        Returns the mean loss of the whole batch, 0-dim, on every rank.
        """

    def eval_batch(self, engine: Engine, batches: Iterator[Any], **options: Any) -> Any:
        """Forward over as many micro-batches, without gradients. Called on all ranks.

        Returns the mean loss over all ranks, 0-dim, unless asked otherwise.

        Args:
            engine: whose module it is.
            batches: micro-batches.
            options: what the runner understands beside.
        """


class PlainRunner:
    """One micro-batch after another through the whole module."""

    is_exclusive: bool = False
    needs_batches: bool = True

    def train_batch(self, engine: Engine, batches: Iterator[Any]) -> torch.Tensor:
        """See `Runner.train_batch`."""
        losses = []
        for _ in range(engine.gradient_accumulation_steps()):
            loss = loss_of(_call(engine, _next(batches)))
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
        return _mean(engine, losses)

    def eval_batch(self, engine: Engine, batches: Iterator[Any], **options: Any) -> torch.Tensor:
        """See `Runner.eval_batch`.

        Raises:
            EngineError: an option; this one has none.
        """
        if options:
            raise EngineError(
                f"eval_batch got {', '.join(options)}, which only a pipeline's engine understands; leave it out, or "
                "call the engine and take what it returns"
            )
        was_training = engine.module.training
        engine.eval()
        try:
            with torch.no_grad():
                count = engine.gradient_accumulation_steps()
                return _mean(engine, [loss_of(_call(engine, _next(batches))) for _ in range(count)])
        finally:
            engine.train(was_training)


def _mean(engine: Engine, losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean over micro-batches and over the ranks of the batch. One all-reduce of one number."""
    mean = torch.stack(list(losses)).float().mean()
    ranks = engine.dp_world_size
    if ranks > 1:
        with comm.scope("loss"):
            comm.all_reduce(mean, group=engine.data_parallel_group)
        mean = mean / ranks
    return mean


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
