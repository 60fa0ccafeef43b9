"""A flat group: parameters of one optimizer group and dtype, laid out by one plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ds_core.errors import ModelError
from ds_core.gradients import Gradients
from ds_core.layout import FlatLayout, Range, plan_layout
from ds_core.values import Values

__all__ = ["FROZEN", "FlatGroup", "NamedParameter", "check_distinct", "group_layouts"]

FROZEN = -1
"""Group index of parameters that no optimizer updates."""


class NamedParameter(NamedTuple):
    """A parameter, its name in the module, its optimizer group, its gradient's wire dtype, and its unit."""

    name: str
    parameter: torch.nn.Parameter
    group_index: int
    reduce_dtype: torch.dtype | None = None
    unit: int = 0


class FlatGroup:
    """Parameters that share an optimizer group, dtype and device; the space that makes it gives it its `values`.

    Attributes:
        group_index: optimizer group, or `FROZEN`.
        layout: where each parameter lies.
        gradients: None for a frozen group.
        values: the working weights.
    """

    values: Values

    def __init__(
        self, members: Sequence[NamedParameter], layout: FlatLayout, *, grad_dtype: torch.dtype | None
    ) -> None:
        first = members[0].parameter
        self.group_index: int = members[0].group_index
        self.reduce_dtype: torch.dtype | None = members[0].reduce_dtype
        self.layout: FlatLayout = layout
        self.parameters: list[torch.nn.Parameter] = [member.parameter for member in members]
        self.dtype: torch.dtype = first.dtype
        self.device: torch.device = first.device
        self.grad_dtype: torch.dtype = grad_dtype or first.dtype
        self._gradients: Gradients | None = None if self.is_frozen else Gradients(self)

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


Key = tuple[int, torch.dtype, torch.dtype | None, torch.device]


def group_layouts(
    parameters: Sequence[NamedParameter], *, shards: int, bucket_numel: int
) -> list[tuple[list[NamedParameter], FlatLayout]]:
    """Members and layout of every flat group, units in order within each. Pure: reads shapes, never values."""
    keyed: dict[Key, list[NamedParameter]] = {}
    for member in parameters:
        parameter = member.parameter
        key = (member.group_index, parameter.dtype, member.reduce_dtype, parameter.device)
        keyed.setdefault(key, []).append(member)
    plans = []
    for members in keyed.values():
        members.sort(key=lambda member: member.unit)
        shapes = [(member.name, tuple(member.parameter.shape)) for member in members]
        units = [member.unit for member in members]
        plans.append((members, plan_layout(shapes, shards=shards, bucket_numel=bucket_numel, units=units)))
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
