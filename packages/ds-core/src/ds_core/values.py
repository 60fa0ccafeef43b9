"""Values: where the working weights of a flat group live, and what each parameter shows of them.

Note [Filled one parameter at a time]
    A group is filled parameter by parameter from whatever holds the values now, so that building an engine never needs
    a second copy of the model. `source` answers with a parameter's full value; it may read a file, replay an
    initialiser or gather shards.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ds_core import buffers
from ds_core.errors import ModelError
from ds_core.layout import Range
from ds_core.placeholder import is_placeholder, is_same_memory, show

if TYPE_CHECKING:
    from ds_core.flat import FlatGroup

__all__ = ["Source", "Values", "WholeValues", "present"]

Source = Callable[[torch.nn.Parameter], torch.Tensor]
"""A parameter's full value, in any floating dtype and memory; called on all ranks in the same order."""


def present(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The values in ``parameter.data``.

    Raises:
        ModelError: they are elsewhere: an engine, or a construction in shards, keeps them.
    """
    if is_placeholder(parameter.data):
        raise ModelError(
            f"a parameter of shape {tuple(parameter.shape)} has no values here: the model is sharded already. If "
            "another engine has it, call its destroy() on all ranks first; if it was built under ds_zero.Init, install "
            "and enable ds-zero"
        )
    return parameter.data


class Values(abc.ABC):
    """The working values of one flat group."""

    @abc.abstractmethod
    def of(self, span: Range) -> torch.Tensor:
        """Values of `span`, 1-D; `span` is in one bucket and held by this rank.

        To read and write where `home` has a device; else to read, until the next call.
        """

    def home(self, span: Range) -> torch.device | None:
        """Where the memory of `span` is; None where it has none, so that `of` reads a copy."""
        return self.of(span).device

    def put(self, span: Range, values: torch.Tensor) -> None:
        """Replaces the values of `span` by 1-D `values`, of any dtype and device."""
        here = self.of(span)
        if not is_same_memory(here, values):
            here.copy_(values.to(here.dtype))  # rounded where they are, so that a link carries the smaller ones

    @abc.abstractmethod
    def is_shown(self, place: int) -> bool:
        """Whether the parameter at `place` is, at all times, a view of its values here."""

    @abc.abstractmethod
    def fill(self, source: Source) -> None:
        """Takes every parameter's value from `source`, once."""

    @abc.abstractmethod
    def held(self) -> tuple[Range, ...]:
        """What `of` can answer on this rank, in order."""

    @abc.abstractmethod
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that hold the values; they may be given other memory of the same contents."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives memory back; parameters are left with their full values. Called on all ranks."""


class WholeValues(Values):
    """One flat tensor on every rank; each parameter is a view of it."""

    def __init__(self, flat: FlatGroup) -> None:
        self._flat = flat
        self.tensor: torch.Tensor = buffers.empty(flat.layout.numel, flat.dtype, flat.device)

    def of(self, span: Range) -> torch.Tensor:
        """See `Values.of`."""
        return self.tensor[span.start : span.stop]

    def is_shown(self, place: int) -> bool:
        """Always."""
        return True

    def held(self) -> tuple[Range, ...]:
        """Everything."""
        return self._flat.layout.whole()

    def tensors(self) -> list[torch.Tensor]:
        """The one."""
        return [self.tensor]

    def fill(self, source: Source) -> None:
        """Moves values in, one parameter at a time, and makes each parameter a view."""
        end = 0
        with torch.no_grad():
            for slot, parameter in zip(self._flat.layout.slots, self._flat.parameters, strict=True):
                self.tensor[end : slot.start].zero_()
                view = self.tensor[slot.start : slot.stop].view(slot.shape)
                view.copy_(source(parameter))
                show(parameter, view)
                end = slot.stop
            self.tensor[end:].zero_()

    def close(self) -> None:
        """Parameters keep the tensor alive."""
