"""Stand-ins for parameter values that are not here: the logical shape, one element of memory, and NaN to whoever reads.

A parameter whose values are sharded away keeps its shape, dtype and device, so code that asks for them works. Writing
into it in place is refused by torch, for all its elements are one; reading it gives NaN, never stale numbers.

Note [Tensors made of tensors]
    The tensors of a device written in Python alone are a subclass of torch's: what they hold is not in a storage but in
    attributes, which ``__tensor_flatten__`` names. ``parameter.data = value`` then takes the shape and leaves the
    values behind. Whoever gives a parameter other data does so through `show` or `assign`, which take the attributes
    along. Such tensors have no address either, so `is_same_memory` is the question, and not ``data_ptr``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["assign", "is_placeholder", "is_same_memory", "move", "move_module", "placeholder", "show"]


def placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `shape` whose elements are all one NaN. At least one dimension and two elements."""
    value = float("nan") if dtype.is_floating_point or dtype.is_complex else 0
    return torch.full((), value, dtype=dtype, device=device).as_strided(tuple(shape), (0,) * len(shape))


def is_placeholder(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a stand-in."""
    return tensor.dim() > 0 and tensor.numel() > 1 and not any(tensor.stride())


def move(
    parameter: torch.nn.Parameter, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> None:
    """Moves or casts a parameter's data in place; a stand-in stays one."""
    data = parameter.data
    device, dtype = device or data.device, dtype or data.dtype
    if (data.device, data.dtype) == (device, dtype):
        return
    if is_placeholder(data):
        assign(parameter, placeholder(data.shape, dtype, device))
    else:
        assign(parameter, data.to(device=device, dtype=dtype))


def move_module(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """`module` on `device`; parameters whose values are elsewhere stay stand-ins."""
    for parameter in module.parameters():
        move(parameter, device=device)
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = buffer.to(device)
    return module


def assign(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Gives `parameter` other data, on whatever device; the Parameter object stays the same.

    See Note [Tensors made of tensors].

    torch takes ``parameter.data = value`` only where both have one kind of tensor inside, which a CPU tensor and one of
    an out-of-tree device do not; there the insides are exchanged.
    """
    if torch._has_compatible_shallow_copy_type(parameter.data, value):
        show(parameter, value)
        return
    other = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
    if type(other) is not type(parameter):
        _become(parameter, other)
    torch._C._swap_tensor_impl(parameter, other)


def show(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Makes `tensor` show `value`, of its own device; see Note [Tensors made of tensors]."""
    tensor.data = value
    if type(value) not in _PLAIN:
        for name in _made_of(value):
            setattr(tensor, name, getattr(value, name))


def _become(parameter: torch.nn.Parameter, other: torch.nn.Parameter) -> None:
    """Gives `parameter` the class of `other` and what that is made of; attributes of its own and weak references stay.

    torch.utils.swap_tensors would exchange all attributes, and refuses a tensor that somebody refers to weakly.
    """
    for name in _made_of(parameter):
        delattr(parameter, name)
    parameter.__class__ = type(other)
    vars(parameter).update(vars(other))


def _made_of(tensor: torch.Tensor) -> list[str]:
    if type(tensor) in _PLAIN:
        return []
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return list(names)


def is_same_memory(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors begin at one address; False where they have none."""
    address = left.data_ptr()
    return address != 0 and address == right.data_ptr() and left.device == right.device


_PLAIN = (torch.Tensor, torch.nn.Parameter)
