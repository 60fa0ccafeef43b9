"""What the ops of elementwise optimizers share: the checks of flat tensors, and the walk of a reference over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ds_core.errors import OpError
from ds_core.ops.checks import FLOATS, expect_device, expect_dtype, expect_flat, name_of
from ds_core.ops.rounding import store

__all__ = ["CHUNK", "check_factor", "check_flat", "check_scalars", "fake", "gradient", "root", "walk"]

CHUNK = 1 << 20
"""Elements a reference works on at a time, which bounds its temporary memory."""


def check_flat(
    op: str, param: torch.Tensor, others: Mapping[str, torch.Tensor | None], *, allowed: Sequence[torch.dtype] = FLOATS
) -> None:
    """All tensors are 1-D, dense, as long as `param`, of allowed dtypes and on its device; None is left out.

    Raises:
        OpError: one is not.
    """
    numel, device = param.numel(), param.device
    _check_one(op, "param", param, numel, device, allowed)
    for name, tensor in others.items():
        if tensor is not None:
            _check_one(op, name, tensor, numel, device, allowed)


def _check_one(
    op: str, name: str, tensor: torch.Tensor, numel: int, device: torch.device, allowed: Sequence[torch.dtype]
) -> None:
    if tensor.dim() != 1 or not tensor.is_contiguous():
        expect_flat(op, name, tensor)
    if tensor.numel() != numel:
        raise OpError(f"{op}: {name} must have {numel} elements like param, got {tensor.numel()}.")
    if tensor.dtype not in allowed:
        expect_dtype(op, name, tensor, allowed)
    if tensor.device != device:
        expect_device(op, name, tensor, "param", device)


def check_factor(op: str, param: torch.Tensor, grad_factor: torch.Tensor | None, rounding_offset: int) -> None:
    """The gradient factor is a 0-dim float32 tensor beside `param` or None, and the offset is not negative."""
    if grad_factor is not None:
        if grad_factor.dim() != 0 or grad_factor.dtype != torch.float32:
            raise OpError(
                f"{op}: grad_factor must be a 0-dim float32 tensor, got "
                f"{name_of(grad_factor.dtype)} of shape {tuple(grad_factor.shape)}."
            )
        if grad_factor.device != param.device:
            expect_device(op, "grad_factor", grad_factor, "param", param.device)
    if rounding_offset < 0:
        raise OpError(f"{op}: rounding_offset must be 0 or more, got {rounding_offset}.")


def check_scalars(op: str, *, step: int | None = None, **betas: float) -> None:
    """`step` counts from 1, and each of `betas` is in [0, 1)."""
    if step is not None and step < 1:
        raise OpError(f"{op}: step must be 1 or more (the first update is step 1), got {step}.")
    if not all(0.0 <= beta < 1.0 for beta in betas.values()):
        values = " and ".join(str(value) for value in betas.values())
        raise OpError(f"{op}: {' and '.join(betas)} must be in [0, 1), got {values}.")


def gradient(grad: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """The gradient as float32, multiplied; may be `grad` itself, so it must not be changed."""
    values = grad.to(torch.float32)
    return values if factor is None else values * factor


def root(x: torch.Tensor) -> torch.Tensor:
    """The correctly rounded square root of float32 `x`, in new memory; torch's own is off by a unit now and then."""
    return x.double().sqrt_().float() if x.device.type == "cpu" else x.sqrt()


Step = Callable[..., None]
"""``step(p, g, *states)`` on float32, changing all but ``g`` in place."""


def walk(
    step: Step,
    param: torch.Tensor,
    grad: torch.Tensor,
    states: Sequence[torch.Tensor],
    copy_out: torch.Tensor | None,
    grad_factor: torch.Tensor | None,
    rounding_seed: int,
    rounding_offset: int,
) -> None:
    """Runs `step` over chunks as float32, rounds what it changed back, and copies the stored param out."""
    with torch.no_grad():
        for first in range(0, param.numel(), CHUNK):
            span = slice(first, min(first + CHUNK, param.numel()))
            outs = [param, *states]
            values = [out[span].to(torch.float32) for out in outs]
            step(values[0], gradient(grad[span], grad_factor), *values[1:])
            for stream, (value, out) in enumerate(zip(values, outs, strict=True)):
                if out.dtype != torch.float32:
                    store(value, out[span], rounding_seed, stream, rounding_offset + first)
            if copy_out is not None:
                copy_out[span].copy_(param[span])


def fake(param: torch.Tensor, *args: object, **kwargs: object) -> None:
    """The shape function of an op that returns nothing."""
    return None
