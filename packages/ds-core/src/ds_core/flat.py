"""A flat group: parameters of one optimizer group and dtype, laid out by one plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ds_core.errors import ModelError
from ds_core.gradients import Gradients
from ds_core.holdings import Replicas
from ds_core.layout import FlatLayout, Range, plan_layout
from ds_core.values import Values

__all__ = ["FROZEN", "FlatGroup", "Logical", "NamedParameter", "check_distinct", "group_layouts"]

FROZEN = -1
"""Group index of parameters that no optimizer updates."""


class Logical(NamedTuple):
    """The tensor a parameter is part of, as checkpoints know it: its shape, and where the parameter begins in it."""

    shape: tuple[int, ...]
    start: int = 0


class NamedParameter(NamedTuple):
    """A parameter of the module and what is known of it.

    Attributes:
        name: in the module.
        parameter: itself.
        group_index: its optimizer group, or `FROZEN`.
        reduce_dtype: its gradient's dtype on the wire, where that is not its own.
        unit: which it moves with.
        replicas: ranks that hold the same values; None: all of the batch.
        logical: the tensor it is part of; None: it is all of it.
    """

    name: str
    parameter: torch.nn.Parameter
    group_index: int
    reduce_dtype: torch.dtype | None = None
    unit: int = 0
    replicas: Replicas | None = None
    logical: Logical | None = None


class FlatGroup:
    """Parameters that share an optimizer group, dtype, device and replicas; the space that makes it gives it `values`.

    Attributes:
        group_index: optimizer group, or `FROZEN`.
        layout: where each parameter lies.
        replicas: ranks that hold the same values.
        gradients: None for a frozen group.
        values: the working weights.
    """

    values: Values

    def __init__(
        self,
        members: Sequence[NamedParameter],
        layout: FlatLayout,
        *,
        replicas: Replicas,
        grad_dtype: torch.dtype | None,
    ) -> None:
        first = members[0].parameter
        self.replicas: Replicas = members[0].replicas or replicas
        self._logical: list[Logical] = [m.logical or Logical(tuple(m.parameter.shape)) for m in members]
        self.group_index: int = members[0].group_index
        self.reduce_dtype: torch.dtype | None = members[0].reduce_dtype
        self.layout: FlatLayout = layout
        self.parameters: list[torch.nn.Parameter] = [member.parameter for member in members]
        self.dtype: torch.dtype = first.dtype
        self.device: torch.device = first.device
        self.grad_dtype: torch.dtype = grad_dtype or first.dtype
        self._gradients: Gradients | None = None if self.is_frozen else Gradients(self)

    def logical(self, place: int) -> Logical:
        """The tensor that the parameter at `place` is part of."""
        return self._logical[place]

    def bounds(self, place: int, part: Range) -> Range:
        """Flat elements of its logical tensor that `part`, within the parameter at `place`, stands for."""
        shift = self._logical[place].start - self.layout.slots[place].start
        return Range(part.start + shift, part.stop + shift)

    @property
    def is_frozen(self) -> bool:
        """True when no optimizer updates it."""
        return self.group_index == FROZEN

    @property
    def gradients(self) -> Gradients:
        """The collected gradients; a frozen group has none."""
        if self._gradients is None:
            raise AssertionError("a frozen group has no gradients")
        return self._gradients

    def working(self, span: Range) -> torch.Tensor:
        """Working values of `span`, 1-D; see `Values.of`."""
        return self.values.of(span)

    def store(self, span: Range, values: torch.Tensor) -> None:
        """Replaces the working values of `span`."""
        self.values.put(span, values)

    def grads(self, span: Range) -> torch.Tensor:
        """Reduced gradients of `span`, 1-D."""
        return self.gradients.of(span)

    def zero_grad(self) -> None:
        """Forgets gradients."""
        if self._gradients is not None:
            self._gradients.zero_grad()

    def close(self) -> None:
        """Removes hooks and gives memory back; parameters keep their values."""
        if self._gradients is not None:
            self._gradients.close()
        self.values.close()


Key = tuple[int, torch.dtype, torch.dtype | None, torch.device, tuple[int, ...]]


def group_layouts(
    parameters: Sequence[NamedParameter], *, shards: int, bucket_numel: int
) -> list[tuple[list[NamedParameter], FlatLayout]]:
    """Members and layout of every flat group, units in order within each. Pure: reads shapes, never values.

    Args:
        parameters: in optimizer-group order.
        shards: ranks of the batch, which hold what names no other replicas.
        bucket_numel: elements per collective.
    """
    keyed: dict[Key, list[NamedParameter]] = {}
    for member in parameters:
        parameter, holders = member.parameter, member.replicas.members if member.replicas is not None else ()
        key = (member.group_index, parameter.dtype, member.reduce_dtype, parameter.device, holders)
        keyed.setdefault(key, []).append(member)
    plans = []
    for members in keyed.values():
        members.sort(key=lambda member: member.unit)
        replicas = members[0].replicas
        shapes = [(member.name, tuple(member.parameter.shape)) for member in members]
        units = [member.unit for member in members]
        ranks = shards if replicas is None else replicas.ranks
        plans.append((members, plan_layout(shapes, shards=ranks, bucket_numel=bucket_numel, units=units)))
    return plans


def check_distinct(parameters: Sequence[NamedParameter]) -> None:
    """Raises ModelError where two Parameter objects lie over the same memory."""
    memory: dict[tuple[torch.device, int], str] = {}
    for member in parameters:
        parameter = member.parameter
        if parameter.is_meta or not parameter.numel():
            continue
        address = (parameter.device, parameter.data_ptr())
        if address[1] and memory.setdefault(address, member.name) != member.name:
            raise ModelError(
                f"parameters {memory[address]!r} and {member.name!r} are different Parameter objects over the same "
                "memory; tie weights by assigning one Parameter object to both places"
            )
