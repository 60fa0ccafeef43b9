"""Models as shapes: the outline of a module, and a module made from names and shapes. Neither has values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ds_core.errors import ModelError

__all__ = ["Outline", "from_shapes", "outline"]


class Outline(NamedTuple):
    """A module's tree on the meta device, and for the id of each of its parameters the one that stands for it."""

    module: nn.Module
    twins: dict[int, nn.Parameter]


def outline(module: nn.Module) -> Outline:
    """The tree of `module` with its names, class names, shapes, dtypes and ties; `module` stays as it is.

    Raises:
        ModelError: it has no parameters, or some whose shape is not known before the first forward.
    """
    shells: dict[int, nn.Module] = {}
    classes: dict[str, type[nn.Module]] = {}
    twins: dict[int, nn.Parameter] = {}
    buffers: dict[int, torch.Tensor] = {}

    def twin(parameter: nn.Parameter) -> nn.Parameter:
        if nn.parameter.is_lazy(parameter):
            raise ModelError("a lazy module has parameters without a shape; call the model once before it is planned")
        if id(parameter) not in twins:
            values = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            made = twins[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            made.__dict__.update(vars(parameter))
        return twins[id(parameter)]

    def buffer(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in buffers:
            buffers[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        return buffers[id(tensor)]

    def shell(owner: nn.Module) -> nn.Module:
        if id(owner) in shells:
            return shells[id(owner)]
        name = type(owner).__name__
        made = shells[id(owner)] = classes.setdefault(name, type(name, (nn.Module,), {}))()
        made._parameters.update((key, None if p is None else twin(p)) for key, p in owner._parameters.items())
        made._buffers.update((key, None if b is None else buffer(b)) for key, b in owner._buffers.items())
        made._non_persistent_buffers_set.update(owner._non_persistent_buffers_set)
        made._modules.update((key, None if child is None else shell(child)) for key, child in owner._modules.items())
        return made

    root = shell(module)
    if not twins:
        raise ModelError(f"model {type(module).__name__} has no parameters; there is nothing to plan")
    return Outline(root, twins)


def from_shapes(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A module tree on the meta device with a parameter for each dotted name.

    Args:
        shapes: shape by name, in registration order, for example ``{"block.0.up.weight": (64, 16)}``.
        dtype: of all of them.

    Raises:
        ModelError: there are no names, one is taken twice or malformed, or a size is negative.
    """
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        owner: Any = root
        if not all((*path, last)) or any(size < 0 for size in shape):
            raise ModelError(f"a shape must have a dotted name and sizes of 0 or more, got {name!r}: {tuple(shape)}")
        for key in path:
            if key in owner._parameters:
                raise ModelError(
                    f"{name!r} lies inside {key!r}, which is a parameter; a name is a parameter or a module"
                )
            owner = owner._modules.setdefault(key, nn.Module())
        if last in owner._modules:
            raise ModelError(f"{name!r} is a parameter and a module; give it one meaning")
        owner._parameters[last] = nn.Parameter(torch.empty(tuple(shape), dtype=dtype, device="meta"))
    if not shapes:
        raise ModelError("no shapes were given; there is nothing to plan")
    return root
