"""rms_norm: root-mean-square normalization of rows, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ds_core.ops._norm_common import BACKWARD_EXACTNESS, FORWARD_EXACTNESS, ROW_SPECS, check_gradient, check_rows
from ds_core.ops.case import Fill, OpCase, TensorSpec
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "rms_norm", "rms_norm_backward", "rms_norm_forward"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """``x / sqrt(mean(x**2, -1) + eps) * weight`` over the last dimension; differentiable in `x` and `weight`.

    Args:
        x: [..., columns], float32, bfloat16 or float16, any strides. Arithmetic is in float32 with one rounding.
        weight: [columns], float32, bfloat16 or float16, independent of `x`.
        eps: added to the mean square.

    Raises:
        OpError: a shape, dtype or device does not fit.

    Source: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019, eq. 4.
    """
    y: torch.Tensor
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y, _ = torch.ops.ds.rms_norm_forward(x, weight, eps)
    else:
        y, _ = rms_norm_forward(x, weight, eps)
    return y


def rms_norm_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, rstd), rstd being ``1 / sqrt(mean(x**2, -1) + eps)`` in float32. Without autograd when called from here."""
    call = torch.ops.ds.rms_norm_forward if not is_plain(x) else _forward
    y, rstd = call(x, weight, eps)
    return y, rstd


def rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dweight) in the dtypes of `x` and `weight`."""
    call = torch.ops.ds.rms_norm_backward if not is_plain(dy) else _backward
    dx, dweight = call(dy, x, weight, rstd)
    return dx, dweight


def _forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Any:
    with torch.no_grad():
        return run(DEFINITIONS[0], x, weight, eps)


def _backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor) -> Any:
    with torch.no_grad():
        return run(DEFINITIONS[1], dy, x, weight, rstd)


def _check_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    check_rows("rms_norm", x, weight)


def _check_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor) -> None:
    check_rows("rms_norm_backward", x, weight)
    check_gradient("rms_norm_backward", dy, x, rstd=rstd)


def _reference_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    values = x.float().contiguous()
    rstd = 1.0 / (values.square().mean(-1) + eps).sqrt()
    y = values * rstd.unsqueeze(-1) * weight.float()
    return y.to(x.dtype), rstd


def _reference_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    gradient, scale = dy.float().contiguous(), rstd.unsqueeze(-1)
    normalized = x.float().contiguous() * scale
    weighted = gradient * weight.float()
    projection = (weighted * normalized).mean(-1, keepdim=True)
    dx = (weighted - normalized * projection) * scale
    dweight = (gradient * normalized).reshape(-1, x.shape[-1]).sum(0)
    return dx.to(x.dtype), dweight.to(weight.dtype)


def _fake_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(x.shape[:-1], dtype=torch.float32)


def _fake_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: torch.Tensor | None, _: torch.Tensor | None) -> tuple[Any, Any, None]:
    if dy is None:
        return None, None, None
    x, weight, rstd = ctx.saved_tensors
    dx, dweight = torch.ops.ds.rms_norm_backward(dy, x, weight, rstd)
    return dx, dweight, None


_FORWARD_CASES = tuple(
    OpCase(
        name,
        {"x": x, "weight": TensorSpec(x.shape[-1:], weight)},
        {"eps": 1e-6},
        exactness=FORWARD_EXACTNESS,
    )
    for name, x, weight in ROW_SPECS
)
_BACKWARD_CASES = tuple(
    OpCase(
        name,
        {
            "dy": replace(x, scale=0.1),
            "x": x,
            "weight": TensorSpec(x.shape[-1:], weight),
            "rstd": TensorSpec(x.shape[:-1], "float32", Fill.SQUARES, 1.0 / x.scale),
        },
        exactness=BACKWARD_EXACTNESS,
    )
    for name, x, weight in ROW_SPECS
)

DEFINITIONS = (
    OpDefinition(
        schema="rms_norm_forward(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
        check=_check_forward,
        reference=_reference_forward,
        fake=_fake_forward,
        autograd=Autograd(_differentiate, _setup_context),
        cases=_FORWARD_CASES,
    ),
    OpDefinition(
        schema="rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
        check=_check_backward,
        reference=_reference_backward,
        fake=_fake_backward,
        autograd=None,
        cases=_BACKWARD_CASES,
    ),
)
