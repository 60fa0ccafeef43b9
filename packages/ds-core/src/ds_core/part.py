"""`Part`: the contract between the engine and everything that takes part in a training step.

The engine knows no part by name. It calls each hook point in the parts' declared order; a part overrides what it
needs and inherits harmless defaults. If the engine has to know something about a feature, `Part` gains a method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ds_core.errors import PluginError
from ds_core.ordering import declared_order

if TYPE_CHECKING:
    import torch

    from ds_core.build import Build
    from ds_core.config import Batch
    from ds_core.engine_api import EngineApi
    from ds_core.state import StatePlan, StateReader

__all__ = ["Part", "Update", "order_parts", "overrides"]


@dataclass(slots=True)
class Update:
    """One optimizer step on its way through the parts.

    Attributes:
        step: number of the step being taken, counting from 1.
        samples: samples seen when this step is done, over all ranks.
        grad_factor: what every stored gradient element must be multiplied by before it is used (unscale x average x
            clip coefficient). Parts before the update multiply into it; nothing rescales the gradient buffers.
        grad_norm: global L2 norm of the averaged, unscaled gradients before clipping; None until it is known.
        used: per flat group, whether each parameter received a gradient on any rank; None means all did.
        skip_reason: set by a part to leave the parameters as they are; the first reason stays.
        lr_kwargs: keyword arguments for the schedule's ``step``.
    """

    step: int
    samples: int = 0
    grad_factor: float = 1.0
    grad_norm: float | None = None
    used: list[list[bool]] | None = None
    skip_reason: str | None = None
    lr_kwargs: Mapping[str, Any] | None = None

    def skip(self, reason: str) -> None:
        """Leaves the parameters untouched in this step."""
        if self.skip_reason is None:
            self.skip_reason = reason


class Part:
    """A participant in the training step. Every method has a harmless default.

    Order among parts is declared: `before` and `after` name other parts (absent ones are ignored), `conflicts_with`
    names parts it cannot share an engine with.
    """

    name: ClassVar[str] = ""
    before: ClassVar[Sequence[str]] = ()
    after: ClassVar[Sequence[str]] = ()
    conflicts_with: ClassVar[Sequence[str]] = ()
    state_kind: ClassVar[str] = "engine"
    """What a load may leave out: ``module``, ``optimizer``, ``schedule`` or ``engine`` state; ``always`` is never."""

    def prepare(self, build: Build) -> None:
        """Sets itself up while the engine is built. Called once, on all ranks."""

    def forward_context(self) -> AbstractContextManager[Any] | None:
        """A context to run the module's forward in, or None. Called for every forward."""
        return None

    def cast_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The forward's arguments, changed where this part must. Called for every forward."""
        return args, kwargs

    def loss_factor(self) -> float:
        """What a loss is multiplied by before backward. Asked before every backward."""
        return 1.0

    def observe_loss(self, loss: torch.Tensor) -> None:
        """Sees every loss the engine backpropagates, unscaled. Must not keep its graph."""

    def batch_changed(self, batch: Batch) -> None:
        """Called when the user changes the batch sizes between steps."""

    def before_backward(self) -> None:
        """Called before every backward pass that the engine drives or observes."""

    def after_backward(self) -> None:
        """Called after every backward pass."""

    def before_step(self) -> None:
        """Called first in every ``engine.step()``, before anything is counted; may refuse it."""

    def reduce_gradients(self) -> None:
        """Brings gradients of all ranks together now. Called by hand, or by this part itself in `before_update`."""

    def before_update(self, update: Update) -> None:
        """Reduces, measures, vetoes. Called on all ranks at the accumulation boundary."""

    def update(self, update: Update) -> None:
        """Changes parameters. Called on all ranks unless a part vetoed the step."""

    def after_update(self, update: Update) -> None:
        """Publishes results, advances schedules and counters. Called on all ranks, vetoed or not."""

    def after_step(self, engine: EngineApi) -> None:
        """Called last, when a step is complete: counters are advanced and gradients forgotten. May save, may raise."""

    def zero_grad(self) -> None:
        """Forgets accumulated gradients. Called after every update and by ``engine.zero_grad()``."""

    def gathered(self, parameters: Sequence[torch.nn.Parameter]) -> AbstractContextManager[Any]:
        """A context in which `parameters` hold their full values on every rank."""
        return nullcontext()

    def offload_states(
        self, kinds: frozenset[str], device: torch.device, *, pin_memory: bool, non_blocking: bool
    ) -> None:
        """Moves states of `kinds` (`ds_core.parts.residence`) to `device` until `reload_states`."""

    def reload_states(self, *, non_blocking: bool) -> None:
        """Brings offloaded states back. Also called before the engine is closed."""

    def state_devices(self, kind: str) -> set[torch.device]:
        """Where the states of `kind` are on this rank, as far as this part keeps them."""
        return set()

    def before_save(self) -> None:
        """Called first in every save, on all ranks, before any plan is asked for; may refuse it."""

    def state_plan(self) -> StatePlan | None:
        """What this part keeps in a checkpoint, as this rank would write it; None keeps nothing."""
        return None

    def check_state(self, reader: StateReader) -> None:
        """Refuses a checkpoint that `load_state` could not take. Changes nothing, and does not communicate.

        Called on all ranks, for every part that will be loaded before any is.

        Raises:
            CheckpointError: something is missing, or of another shape or kind.
        """

    def load_state(self, reader: StateReader) -> None:
        """Takes its state back from a checkpoint written by any number of ranks. Does not communicate."""

    def state_loaded(self) -> None:
        """Called on all ranks when the parts of every rank have their state; shares what all ranks must have."""

    def optimizer_names(self) -> list[list[str]]:
        """Names of the parameters of each optimizer group, in its order; for checkpoints that number them."""
        return []

    def weights_replaced(self, reader: StateReader | None = None) -> None:
        """Called when parameters were replaced but not optimizer state; finer copies must be taken anew.

        Args:
            reader: the checkpoint they came from, which may know them more finely.
        """

    def engine_methods(self) -> Mapping[str, Callable[..., Any]]:
        """What users may call on the engine because of this part, by name. Asked once, when the engine is made."""
        return {}

    def engine_values(self) -> Mapping[str, Callable[[], Any]]:
        """What users find on the engine because of this part, by name: what the function gives whenever they look.

        Asked once, when the engine is made. The function must not communicate, as one rank alone may look.
        """
        return {}

    def metrics(self, update: Update) -> Iterable[tuple[str, float]]:
        """Names and values for the monitors after an update.

        Called on the ranks that write metrics, where some monitor is on; must not communicate, so what concerns other
        ranks is gathered in `before_update` or `after_update`.
        """
        return ()

    def close(self) -> None:
        """Removes hooks and frees buffers. Called once by ``engine.destroy()``."""


def overrides(parts: Iterable[Part], method: str) -> list[Any]:
    """Bound methods of the parts that override `method`, in order; so that a step calls nothing needlessly."""
    return [getattr(part, method) for part in parts if getattr(type(part), method) is not getattr(Part, method)]


def order_parts(parts: Sequence[Part]) -> list[Part]:
    """Sorts parts by their declared order, ties by name; independent of the order they came in.

    Raises:
        PluginError: two parts share a name, conflict, or declare a circle.
    """
    by_name: dict[str, Part] = {}
    for part in parts:
        if not part.name:
            raise PluginError(f"part {type(part).__module__}.{type(part).__qualname__} has no name; set `name`")
        if part.name in by_name:
            other = type(by_name[part.name])
            raise PluginError(
                f"two parts are named {part.name!r}: {other.__module__}.{other.__qualname__} and "
                f"{type(part).__module__}.{type(part).__qualname__}; disable one of the wheels with DS_PLUGINS_DISABLE"
            )
        by_name[part.name] = part
    return [by_name[name] for name in declared_order(by_name, "part")]
