"""Executes one rank's row of a schedule: the stages' graphs between forward and backward, and who gets what.

What a stage gives is cut from its graph before the next stage takes it, on another rank or on this one, so that every
stage goes backward by itself, when the schedule says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from ds_pipeline.errors import PipelineError
from ds_pipeline.runtime.backward import Ends, backward_inputs, backward_whole
from ds_pipeline.runtime.batches import MicroBatches
from ds_pipeline.runtime.shapes import describe
from ds_pipeline.runtime.transport import Transport
from ds_pipeline.schedules import Action, Message, Op, Schedule
from ds_pipeline.stage import Staged

if TYPE_CHECKING:
    from ds_core.engine import Engine

__all__ = ["Execution"]

Place = tuple[int, int]
"""A stage and a micro-batch."""


class Execution:
    """One batch on one rank.

    Args:
        engine: runs the module and its backward passes.
        module: this rank's stages.
        schedule: what every rank does.
        transport: messages; begun for this schedule.
        batches: None where neither the first nor the last stage is.
        with_loss: the last stage computes a loss.
        keep_outputs: the last stage's outputs are kept.

    Attributes:
        schedule: as given.
        now: what is being done, for messages.
        losses: of the last stage, by micro-batch.
        outputs: the same, where they are kept.
        held_peak: the most graphs (stage inputs with what belongs to them) that were held at a time.
    """

    def __init__(
        self,
        engine: Engine,
        module: Staged,
        schedule: Schedule,
        transport: Transport,
        batches: MicroBatches | None,
        *,
        with_loss: bool = True,
        keep_outputs: bool = False,
    ) -> None:
        self._engine: Engine = engine
        self._module: Staged = module
        self.schedule: Schedule = schedule
        self._transport: Transport = transport
        self._batches: MicroBatches | None = batches
        self._with_loss: bool = with_loss
        self._keep_outputs: bool = keep_outputs
        self._rank: int = module.stages.rank
        self._graphs: dict[Place, Ends] = {}
        self._weights: dict[Place, Callable[[], None]] = {}
        self._activations: dict[Place, Any] = {}
        """What the stage before gave, where that is on this rank, too."""
        self._gradients: dict[Place, list[torch.Tensor]] = {}
        """What the stage after gave, in the same case."""
        row = schedule.rows[self._rank]
        self._ends_micro_batch: set[Action] = _last_backwards(row)
        self._open: int = schedule.micro_batches
        self.now: Action = row[0]
        self.losses: dict[int, torch.Tensor] = {}
        self.outputs: dict[int, Any] = {}
        self.held_peak: int = 0

    def run(self, on_action: Callable[[Action], None] | None = None) -> None:
        """Everything in this rank's row but the end of the last micro-batch, which is the step.

        Args:
            on_action: called before each action.
        """
        for action in self.schedule.rows[self._rank]:
            self.now = action
            if on_action is not None:
                on_action(action)
            if action.op is Op.F:
                self._forward(action)
            elif action.op is Op.W:
                self._backward_weights(action)
            else:
                self._backward(action)
            if action in self._ends_micro_batch:
                self._open -= 1
                if self._open:
                    self._engine.end_micro_batch()
        self._transport.finish()

    # ---- forward ----

    def _forward(self, action: Action) -> None:
        stage, micro = action.stage, action.micro_batch
        stages, training = self._module.stages, self.schedule.is_training
        inputs = self._input_of(action)
        targets = None
        with_loss = stage == stages.last and self._with_loss
        if with_loss:
            assert self._batches is not None
            targets = self._batches.take(micro)[1]
        given = self._engine.run_forward(inputs, stage=stage, targets=targets, with_loss=with_loss)
        if with_loss:
            given, outputs = given
            _check_loss(given)
            self.losses[micro] = given.detach()
            if training:
                self._engine.observe_loss(given)
            if self._keep_outputs:
                self.outputs[micro] = outputs
        elif stage == stages.last:
            self.outputs[micro] = given
        if training:
            self._hold((stage, micro), Ends(_leaves(inputs) if stage else [], _ends(given)))
        if stage < stages.last:
            self._hand_on(action, given)

    def _input_of(self, action: Action) -> Any:
        stage, micro = action.stage, action.micro_batch
        if stage == 0:
            assert self._batches is not None
            return self._batches.take(micro)[0]
        source = self.schedule.rank_of_stage[stage - 1]
        if source == self._rank:
            return self._activations.pop((stage, micro))
        return self._transport.take_activation(Message(Action(Op.F, stage - 1, micro), stage), source)

    def _hand_on(self, action: Action, given: Any) -> None:
        stage, micro = action.stage + 1, action.micro_batch
        target = self.schedule.rank_of_stage[stage]
        if target != self._rank:
            self._transport.send_activation(Message(action, stage), target, given)
            return
        layout, tensors = describe(given, f"stage {action.stage}")
        cut = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        self._activations[stage, micro] = layout.join(cut)

    def _hold(self, place: Place, ends: Ends) -> None:
        self._graphs[place] = ends
        self.held_peak = max(self.held_peak, len(self._graphs))

    # ---- backward ----

    def _backward(self, action: Action) -> None:
        place = (action.stage, action.micro_batch)
        ends = self._graphs.pop(place)
        # Layers that run again in backward would do so once for each part, so they do all in the first.
        is_whole = action.op is Op.B or self._module.recomputes
        with self._pass(action) as factor:
            ends, gradients = self._gradients_of(action, ends, factor)
            if is_whole:
                found = backward_whole(ends, gradients)
            else:
                found, self._weights[place] = backward_inputs(ends, gradients)
        if action.stage:
            self._hand_back(action, found)

    def _backward_weights(self, action: Action) -> None:
        with self._pass(action):
            add = self._weights.pop((action.stage, action.micro_batch), None)
            if add is not None:
                add()

    def _pass(self, action: Action) -> AbstractContextManager[float]:
        """A backward pass of the engine; gradients may meet those of other ranks in the last of a micro-batch."""
        return _Pass(self._engine, held=action not in self._ends_micro_batch)

    def _gradients_of(self, action: Action, ends: Ends, factor: float) -> tuple[Ends, list[torch.Tensor | None]]:
        stage, micro = action.stage, action.micro_batch
        if stage == self._module.stages.last:
            scaled = [loss * factor if factor != 1.0 else loss for loss in ends.outputs]
            return Ends(ends.inputs, scaled), [None] * len(scaled)
        source = self.schedule.rank_of_stage[stage + 1]
        if source == self._rank:
            return ends, list(self._gradients.pop((stage, micro)))
        maker = Action(self._op_of(source, stage + 1, micro), stage + 1, micro)
        return ends, list(self._transport.take_gradients(Message(maker, stage), source))

    def _op_of(self, rank: int, stage: int, micro: int) -> Op:
        """How that backward is done there; a schedule may do both."""
        whole = Action(Op.B, stage, micro)
        return Op.B if whole in self.schedule.rows[rank] else Op.I

    def _hand_back(self, action: Action, gradients: list[torch.Tensor]) -> None:
        stage, micro = action.stage - 1, action.micro_batch
        target = self.schedule.rank_of_stage[stage]
        if target == self._rank:
            self._gradients[stage, micro] = gradients
        else:
            self._transport.send_gradients(Message(action, stage), target, gradients)


class _Pass(AbstractContextManager[float]):
    """``engine.backward_pass``, with gradients kept on this rank where it is `held`."""

    def __init__(self, engine: Engine, *, held: bool) -> None:
        self._hold: AbstractContextManager[Any] = engine.no_sync() if held else nullcontext()
        self._pass: AbstractContextManager[float] = engine.backward_pass()

    def __enter__(self) -> float:
        self._hold.__enter__()
        return self._pass.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._pass.__exit__(*exc)
        self._hold.__exit__(*exc)


def _last_backwards(row: tuple[Action, ...]) -> set[Action]:
    """For each micro-batch the last thing a rank does for it."""
    return set({action.micro_batch: action for action in row if action.op is not Op.F}.values())


def _leaves(inputs: Any) -> list[torch.Tensor]:
    return [tensor for tensor in describe(inputs, "a stage")[1] if tensor.requires_grad]


def _ends(given: Any) -> list[torch.Tensor]:
    return [tensor for tensor in describe(given, "a stage")[1] if tensor.requires_grad]


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        shape = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise PipelineError(
            f"the last stage must give a scalar loss, got {shape}: pass loss_fn= to PipelineModule, one that returns a "
            "tensor of one element"
        )
