"""Reduction: brings the gradients of all data-parallel ranks together once per update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_core.errors import EngineError
from ds_core.part import Part, Update

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.space import UpdateSpace

__all__ = ["Reduction"]


class Reduction(Part):
    """Reduces at the accumulation boundary, after the last backward, however many backwards there were."""

    name = "reduction"
    after = ("accumulation",)

    def __init__(self) -> None:
        self._space: UpdateSpace | None = None
        self._factor: float | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the space."""
        self._space = build.space

    def reduce_gradients(self) -> None:
        """Reduces now, unless it was done since the last update."""
        if self._factor is None and self._space is not None:
            self._factor = self._space.reduce()

    def before_backward(self) -> None:
        """New gradients make an earlier reduction of this step stale, which is an error rather than a wrong number."""
        if self._factor is not None:
            raise EngineError(
                "backward was called after engine.allreduce_gradients() and before engine.step(); "
                "reduce once, after the last backward of a step"
            )

    def before_update(self, update: Update) -> None:
        """Reduces and hands the averaging factor on."""
        self.reduce_gradients()
        update.grad_factor *= 1.0 if self._factor is None else self._factor

    def zero_grad(self) -> None:
        """The next gradients are unreduced."""
        self._factor = None
