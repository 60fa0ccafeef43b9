"""`PipelineRunner`: what ``engine.train_batch`` and ``engine.eval_batch`` do when a model is divided into stages."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.errors import CommError
from ds_pipeline.errors import PipelineError, StageError
from ds_pipeline.runtime.batches import MicroBatches
from ds_pipeline.runtime.choose import choose_schedule
from ds_pipeline.runtime.execution import Execution
from ds_pipeline.runtime.failure import Alarm
from ds_pipeline.runtime.transport import LostError, Route, Transport
from ds_pipeline.schedules import Action, Schedule, forward_only, validate

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.engine import Engine
    from ds_pipeline.stage import Staged

__all__ = ["PipelineRunner"]


class PipelineRunner:
    """Runs the micro-batches of a step as a schedule says. Made on all ranks.

    Args:
        build: with the module that is divided.
        module: the same.
        schedule: name, or path of a text file.
        stages_per_rank: None for what the schedule is known for.

    Attributes:
        batch_fn: changes every batch that comes from the data iterator.
        iterator: where batches come from when ``train_batch`` is given none.
        on_action: called before each action; for tests and traces.
        held_peak: the most stage inputs, with their graphs, that this rank held at a time in the last batch.
    """

    def __init__(self, build: Build, module: Staged, *, schedule: str, stages_per_rank: int | None = None) -> None:
        self._module: Staged = module
        self._name: str = schedule
        self._stages_per_rank: int | None = stages_per_rank
        self._device: torch.device = build.device
        self._group, route = _route(build, module)
        self._transport = Transport(route, dynamic=module.dynamic_shape)
        self._world_ranks: list[int] = list(route.world_ranks)
        peers = [rank for rank in self._world_ranks if rank != comm.get_rank()]
        groups = [] if self._group is None else list(dict.fromkeys([self._group, route.up]))
        self._alarm = Alarm(groups, peers[0] if peers else None)
        self._last_holders: list[int] = _holders(build, module.stages.rank_of_stage[-1])
        self._made: dict[int, Schedule] = {}
        self._failure: str | None = None
        self.batch_fn: Callable[[Any], Any] | None = None
        self.iterator: Iterator[Any] | None = None
        self.on_action: Callable[[Action], None] | None = None
        self.held_peak: int = 0
        self.schedule_for(build.config.batch.accumulation_steps)

    @property
    def is_exclusive(self) -> bool:
        """True where there are several pipe ranks; alone the engine may be driven by hand, too."""
        return self._module.stages.ranks > 1

    @property
    def needs_batches(self) -> bool:
        """Whether this rank has the first or the last stage, and no iterator was set."""
        stages = self._module.stages
        return self.iterator is None and (stages.has_first or stages.has_last)

    def schedule_for(self, micro_batches: int) -> Schedule:
        """The schedule of a training step.

        Raises:
            ScheduleError: there is none for so many micro-batches.
        """
        if micro_batches not in self._made:
            stages = self._module.stages
            made = choose_schedule(
                self._name, ranks=stages.ranks, micro_batches=micro_batches, stages_per_rank=self._stages_per_rank
            )
            validate(made)
            self._made[micro_batches] = made
        return self._made[micro_batches]

    def forget_shapes(self) -> None:
        """Activations may have other shapes from the next batch on. Called on all ranks."""
        self._transport.forget_shapes()

    def train_batch(self, engine: Engine, batches: Iterator[Any]) -> torch.Tensor:
        """Forward and backward over every micro-batch of a step, then the step. Called on all ranks.

        Returns:
            The mean loss over micro-batches and ranks, fp32, 0-dim, the same on all ranks.

        Raises:
            StageError: a stage failed, on this rank or another, or is gone.
        """
        schedule = self.schedule_for(engine.gradient_accumulation_steps())
        run = self._execution(engine, schedule, batches, with_loss=True, keep_outputs=False)
        with self._watched(run):
            run.run(self.on_action)
            self.held_peak = run.held_peak
            losses = self._share(run.losses, schedule.micro_batches)
            assert losses is not None
        with self._explained():
            engine.end_micro_batch()
        return losses.mean()

    def eval_batch(
        self,
        engine: Engine,
        batches: Iterator[Any],
        *,
        return_logits: bool = False,
        compute_loss: bool = True,
        reduce_output: str | None = "avg",
        bcast_loss: bool = True,
        num_micro_batches: int | None = None,
        **unknown: Any,
    ) -> Any:
        """Forward over micro-batches, without gradients. Called on all ranks.

        Args:
            engine: whose module it is.
            batches: micro-batches, where the first or last stage is.
            return_logits: give (loss, outputs of the last stage for all micro-batches, along dim 0); outputs are None
                on other ranks.
            compute_loss: False: no loss is computed, and None given for it.
            reduce_output: "avg": the mean over micro-batches and ranks. None: the loss of each micro-batch, mean over
                ranks, 1-D.
            bcast_loss: False: only ranks of the last stage get the loss, of their own samples; others None.
            num_micro_batches: how many; default as many as a step has.
            unknown: refused.

        Raises:
            PipelineError: `reduce_output` is something else, or another option was given.
            StageError: a stage failed, on this rank or another, or is gone.
        """
        if unknown:
            raise PipelineError(
                f"eval_batch does not know {', '.join(unknown)}; it takes return_logits, compute_loss, reduce_output, "
                "bcast_loss and num_micro_batches"
            )
        if reduce_output not in ("avg", None):
            raise PipelineError(f"reduce_output of eval_batch must be 'avg' or None, got {reduce_output!r}")
        count = num_micro_batches or engine.gradient_accumulation_steps()
        stages = self._module.stages
        schedule = forward_only(stages.rank_of_stage, count)
        run = self._execution(engine, schedule, batches, with_loss=compute_loss, keep_outputs=return_logits)
        was_training = engine.module.training
        engine.eval()
        try:
            with torch.no_grad(), self._watched(run):
                run.run(self.on_action)
                losses = self._share(run.losses, count, to_all=bcast_loss) if compute_loss else None
        finally:
            engine.train(was_training)
        loss = losses.mean() if losses is not None and reduce_output == "avg" else losses
        if not return_logits:
            return loss
        rows = [run.outputs[micro] for micro in range(count)] if stages.has_last else None
        return loss, rows if rows is None else _joined(rows)

    def _execution(
        self, engine: Engine, schedule: Schedule, batches: Iterator[Any], *, with_loss: bool, keep_outputs: bool
    ) -> Execution:
        stages = self._module.stages
        if self._failure is not None:
            raise StageError(f"this pipeline has failed before and cannot go on: {self._failure}")
        if self.iterator is not None and _is_own(engine, batches):
            batches = self.iterator
        uses = int(stages.has_first) + int(stages.has_last and with_loss)
        source = MicroBatches(batches, self._module, self._device, self.batch_fn, uses) if uses else None
        self._transport.dynamic = self._module.dynamic_shape
        return Execution(
            engine, self._module, schedule, self._transport, source, with_loss=with_loss, keep_outputs=keep_outputs
        )

    # ---- losses ----

    def _share(self, losses: dict[int, torch.Tensor], count: int, *, to_all: bool = True) -> torch.Tensor | None:
        """The loss of each micro-batch, mean over the ranks that have one; ``to_all`` False: of this rank."""
        is_mine = self._module.stages.has_last
        mine = torch.zeros(count, dtype=torch.float32, device=self._device)
        for micro, loss in losses.items():
            mine[micro] = loss.reshape(())
        if self._group is None or not to_all:
            return mine if is_mine else None
        everyone = mine.new_empty(comm.get_world_size() * count)
        with comm.scope("pipeline loss"):
            handle: Any = comm.all_gather_into_tensor(everyone, mine, group=self._group, async_op=True)
        try:
            handle.work.wait()  # torch's own wait fails at once, while the store with the reports is still there
        except RuntimeError as error:
            raise _SharingError(_line(error)) from error
        return everyone.view(-1, count)[self._last_holders].mean(dim=0)

    # ---- failures ----

    @contextmanager
    def _watched(self, run: Execution) -> Iterator[None]:
        """Tells all ranks when something here fails, and says on each which stage it was."""
        try:
            self._transport.begin(run.schedule)
            yield
        except LostError as error:
            peer, world_rank = error.peer, self._world_ranks[error.peer]
            lost = f"{self._stages_on(peer)} (rank {world_rank}) is gone; its process ended, look at its log"
            first = self._failure = self._alarm.raise_(lost)
            raise StageError(
                f"{self._me()} stopped in {run.now}, waiting for {error.what} (rank {world_rank}): {first}"
            ) from error
        except (CommError, _SharingError) as error:
            first = self._failure = self._alarm.raise_(f"{self._me()} lost contact: {_line(error)}")
            raise StageError(f"{self._me()} stopped after {run.now}: {first}") from error
        except Exception as error:
            report = f"{self._me()} failed in {run.now}: {type(error).__name__}: {_line(error)}"
            self._failure = self._alarm.raise_(report)
            raise StageError(report) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Around the step: a collective that fails because a stage did says which."""
        try:
            yield
        except CommError as error:
            first = self._failure = self._alarm.raise_(f"{self._me()} lost contact: {_line(error)}")
            raise StageError(f"{self._me()} stopped in the step: {first}") from error

    def _me(self) -> str:
        return f"{self._module.stages.title} (rank {comm.get_rank()})"

    def _stages_on(self, rank: int) -> str:
        return dataclasses.replace(self._module.stages, rank=rank).title


class _SharingError(Exception):
    """Losses could not be shared, for a rank is gone or has failed."""


def _is_own(engine: Engine, batches: Iterator[Any]) -> bool:
    """Whether the batches are the engine's own, or none, rather than given to ``train_batch``."""
    return batches is engine._iterator or (type(batches) is type(iter(())) and not operator.length_hint(batches))


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _joined(rows: list[Any]) -> Any:
    if all(isinstance(row, torch.Tensor) and row.dim() for row in rows):
        return torch.cat(rows)
    return rows


def _route(build: Build, module: Staged) -> tuple[Any, Route]:
    """The pipeline's own groups: over all ranks, so that what breaks them for a failure breaks nothing else.

    Devices whose groups do one thing after another (nccl) get one for each direction, or two ranks that send to each
    other would wait for each other.
    """
    rank, world_ranks = module.stages.rank, build.mesh.ranks("pipe")
    if comm.get_world_size() == 1:
        return None, Route(rank, world_ranks, None, None, build.device)
    down = up = comm.new_group(None, name="pipeline")
    if build.device.type != "cpu":
        up = comm.new_group(None, name="pipeline up")
    return down, Route(rank, world_ranks, down, up, build.device)


def _holders(build: Build, pipe_rank: int) -> list[int]:
    """World ranks of one pipe rank."""
    plan = build.mesh.plan
    return [rank for rank in range(plan.world_size) if plan.coords(rank).get("pipe", 0) == pipe_rank]
