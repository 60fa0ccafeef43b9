"""Reduction: says in which backwards the gradients of all data-parallel ranks come together, and brings in the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_core.errors import EngineError
from ds_core.part import Part, Update

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.parts.accumulation import Accumulation
    from ds_core.space import UpdateSpace

__all__ = ["Reduction"]


class Reduction(Part):
    """Gradients meet in every backward, in the last one of a step, or after it, as the space's policy says."""

    name = "reduction"
    after = ("accumulation",)

    def __init__(self) -> None:
        self._space: UpdateSpace | None = None
        self._accumulation: Accumulation | None = None
        self._factor: float | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the space."""
        self._space = build.space
        self._accumulation = build.accumulation

    def reduce_gradients(self) -> None:
        """Reduces now, unless it was done since the last update."""
        if self._factor is None and self._space is not None:
            self._factor = self._space.reduce()

    def before_backward(self) -> None:
        """Starts the exchange of this backward, where it has one.

        Raises:
            EngineError: gradients of this step were reduced by hand; more of them would make that stale.
        """
        if self._factor is not None:
            raise EngineError(
                "backward was called after engine.allreduce_gradients() and before engine.step(); "
                "reduce once, after the last backward of a step"
            )
        if self._space is not None:
            self._space.exchange.begin(self._is_exchanged(self._space))

    def _is_exchanged(self, space: UpdateSpace) -> bool:
        assert self._accumulation is not None
        if self._accumulation.is_held:
            return False
        return space.policy.every_backward or (space.policy.overlap and self._accumulation.is_boundary())

    def after_backward(self) -> None:
        """Ends the exchange of this backward."""
        if self._space is not None:
            self._space.exchange.end()

    def before_update(self, update: Update) -> None:
        """Reduces what is left and hands the averaging factor on."""
        self.reduce_gradients()
        update.grad_factor *= 1.0 if self._factor is None else self._factor

    def zero_grad(self) -> None:
        """The next gradients are unreduced."""
        self._factor = None
