"""The contract of optimizers that update flat runs: gradients of any dtype in, a rounded copy out, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

__all__ = ["FlatOptimizer", "FlatUpdate", "Segment", "SegmentOptimizer", "supports_flat", "takes_flat"]


class FlatUpdate(NamedTuple):
    """One run of consecutive elements to update.

    Attributes:
        param: 1-D values to update, a slice of ``param_groups[group]["params"][param_index]`` flattened.
        grad: 1-D gradients of the same length, in any floating dtype.
        copy_out: 1-D low-precision working values to round the result into, or None.
        state_offset: first element of the run within that parameter, and so within its states.
        group: optimizer group.
        param_index: which parameter of the group.
        step: how many updates these elements have had, this one included; what bias correction counts.
        position: where the run lies among all elements of the model, whoever updates them; stochastic rounding draws by
            it, so that the number of ranks does not change what is drawn. Negative: by the place in the parameter.
    """

    param: torch.Tensor
    grad: torch.Tensor
    copy_out: torch.Tensor | None
    state_offset: int
    group: int
    param_index: int
    step: int
    position: int = -1


@runtime_checkable
class FlatOptimizer(Protocol):
    """An optimizer the engine may hand flat runs to."""

    def step_flat(
        self, updates: Sequence[FlatUpdate], *, grad_factor: torch.Tensor | None = None, rounding_seed: int = -1
    ) -> None:
        """Updates every run. `grad_factor` (0-dim fp32) multiplies gradients; a seed >= 0 rounds stochastically."""


class Segment(NamedTuple):
    """The part of a run that belongs to one parameter.

    Attributes:
        start: first element, within the run.
        stop: one after the last.
        key: number of the parameter among all of the model.
    """

    start: int
    stop: int
    key: int


@runtime_checkable
class SegmentOptimizer(Protocol):
    """An optimizer the engine may hand flat runs to that must know what belongs to which parameter."""

    def step_segments(
        self,
        updates: Sequence[FlatUpdate],
        segments: Sequence[Sequence[Segment]],
        *,
        parameters: int,
        total: Callable[[torch.Tensor], torch.Tensor],
        grad_factor: torch.Tensor | None = None,
        rounding_seed: int = -1,
    ) -> None:
        """Updates the segments of every run. Called on all ranks, also with no runs.

        Args:
            updates: as for `FlatOptimizer.step_flat`.
            segments: of each run.
            parameters: how many the model has.
            total: adds a float64 table with a row for each parameter up over all parts of the parameters. Must be
                called the same number of times on every rank.
        """


def supports_flat(optimizer: object) -> bool:
    """True when the engine may hand `optimizer` flat runs, cut anywhere."""
    return isinstance(optimizer, FlatOptimizer)


def takes_flat(optimizer: object) -> bool:
    """True when the engine may hand `optimizer` flat runs, if only with their segments."""
    return isinstance(optimizer, FlatOptimizer | SegmentOptimizer)
