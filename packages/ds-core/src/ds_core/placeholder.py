"""Stand-ins for parameter values that are not here: the logical shape, one element of memory, and NaN to whoever reads.

A parameter whose values are sharded away keeps its shape, dtype and device, so code that asks for them works. Writing
into it in place is refused by torch, for all its elements are one; reading it gives NaN, never stale numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["assign", "is_placeholder", "move", "placeholder"]


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


def assign(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Gives `parameter` other data, on whatever device; the Parameter object stays the same.

    torch takes ``parameter.data = value`` only where both have one kind of tensor inside, which a CPU tensor and one of
    an out-of-tree device do not; there the insides are exchanged.
    """
    if torch._has_compatible_shallow_copy_type(parameter.data, value):
        parameter.data = value
    else:
        torch._C._swap_tensor_impl(parameter, torch.nn.Parameter(value, requires_grad=parameter.requires_grad))
