"""Tensors that autograd saves: views of full parameters are saved as what they are views of.

A saved tensor then neither keeps a buffer alive nor misses its values: unpacking it gathers its unit.

Note [Saved tensors without storages]
    What a saved tensor is a view of is told by its storage. On a device without storages it is told by the parameter
    it is, or is a view of; other views of full values stay as they are, right, and in memory until backward is done.

Note [Saved parameters]
    Without hooks a parameter that a ``torch.autograd.Function`` saves comes back as itself, and libraries ask it for
    ``ds_status`` in backward, too. Under hooks torch makes a tensor of its own from what is unpacked, a detached one,
    without a word of Python's attributes. It detaches a tensor subclass by asking the subclass: `_Carrier` answers
    with the plain tensor that has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from ds_zero.params import describe_copy, is_described
from ds_zero.sharded.coordinator import Coordinator
from ds_zero.sharded.unit import GatherUnit, UnitState

__all__ = ["SavedTensors"]

_PLAIN = (torch.Tensor, nn.Parameter)


class _View(NamedTuple):
    """A view of a unit's values, without the values; `parameter` is what was saved, if it was one that says so."""

    unit: GatherUnit
    piece: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    parameter: nn.Parameter | None
    requires_grad: bool


class _Whole(NamedTuple):
    """A parameter that stays whole."""

    parameter: nn.Parameter
    requires_grad: bool


class _Carrier(torch.Tensor):
    """A tensor whose detached copy is another tensor. See Note [Saved parameters]."""

    carried: torch.Tensor
    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # as its documentation has it
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What was carried for a detach; everything else is computed with that."""
        if func is torch.ops.aten.detach.default:
            return args[0].carried
        args, kwargs = torch.utils._pytree.tree_map_only(_Carrier, lambda tensor: tensor.carried, (args, kwargs or {}))
        return func(*args, **kwargs)


class SavedTensors:
    """What autograd is given to keep in a forward, and gets back in backward.

    Args:
        coordinator: is told what backward needs.
        unit_of: the unit of each parameter, by id; parameters that stay whole are absent.
    """

    def __init__(self, coordinator: Coordinator, unit_of: Mapping[int, GatherUnit]) -> None:
        self._coordinator = coordinator
        self._unit_of = unit_of

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context for a forward."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> Any:
        if type(tensor) not in _PLAIN:
            return self._pack_other(tensor)
        parameter = tensor if isinstance(tensor, nn.Parameter) and is_described(tensor) else None
        found = self._coordinator.memory.get(tensor.untyped_storage()._cdata)
        if found is not None:
            return _view(*found, tensor, parameter)
        return tensor if parameter is None else _Whole(parameter, tensor.requires_grad)

    def _pack_other(self, tensor: torch.Tensor) -> Any:
        # See Note [Saved tensors without storages].
        parameter = tensor if tensor._base is None else tensor._base
        unit = self._unit_of.get(id(parameter))
        if unit is None or unit.state is not UnitState.GATHERED or tensor.dtype != parameter.dtype:
            return tensor
        return _view(unit, unit.piece_of(parameter), tensor, None)

    def _unpack(self, saved: Any) -> torch.Tensor:
        if type(saved) is _Whole:
            return _described(saved.parameter.detach(), saved.parameter, saved.requires_grad)
        if type(saved) is not _View:
            return saved  # type: ignore[no-any-return]
        self._coordinator.need(saved.unit)
        full = saved.unit.fulls[saved.piece]
        with torch.no_grad():
            if type(full) not in _PLAIN:
                return full.as_strided(saved.size, saved.stride, saved.offset)
            view = torch.empty(0, dtype=saved.dtype, device=full.device)
            view.set_(full.untyped_storage(), saved.offset, saved.size, saved.stride)
        return view if saved.parameter is None else _described(view, saved.parameter, saved.requires_grad)


def _view(unit: GatherUnit, piece: int, tensor: torch.Tensor, parameter: nn.Parameter | None) -> _View:
    size, stride, offset = tensor.size(), tensor.stride(), int(tensor.storage_offset())
    return _View(unit, piece, tensor.dtype, size, stride, offset, parameter, tensor.requires_grad)


def _described(values: torch.Tensor, parameter: nn.Parameter, required_grad: bool) -> torch.Tensor:
    """`values` in such a way that backward sees them with the parameter's attributes. See Note [Saved parameters]."""
    describe_copy(values, parameter)
    if not required_grad:
        return values  # torch hands it on as it is
    carrier: _Carrier = torch.Tensor._make_subclass(_Carrier, values)
    carrier.carried = values
    return carrier
