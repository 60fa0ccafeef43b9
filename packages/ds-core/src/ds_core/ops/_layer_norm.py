"""layer_norm: layer normalization of rows, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops._norm_common import (
    BACKWARD_EXACTNESS,
    FORWARD_EXACTNESS,
    ROW_SPECS,
    check_gradient,
    check_rows,
    check_vector,
)
from ds_core.ops.case import Fill, OpCase, TensorSpec
from ds_core.ops.checks import name_of
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "layer_norm", "layer_norm_backward", "layer_norm_forward"]


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension; differentiable in all three tensors.

    Args:
        x: [..., columns], float32, bfloat16 or float16, any strides. Arithmetic is in float32 with one rounding.
        weight: [columns], float32, bfloat16 or float16, independent of `x`.
        bias: [columns] in the dtype of `weight`, or None.
        eps: added to the variance.

    Raises:
        OpError: a shape, dtype or device does not fit.

    Source: J. Ba, J. Kiros, G. Hinton, "Layer Normalization", 2016, eq. 4.
    """
    wanted = (x, weight) if bias is None else (x, weight, bias)
    y: torch.Tensor
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted):
        y, _, _ = torch.ops.ds.layer_norm_forward(x, weight, bias, eps)
    else:
        y, _, _ = layer_norm_forward(x, weight, bias, eps)
    return y


def layer_norm_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd), the statistics of each row in float32. Without autograd when called from here."""
    call = torch.ops.ds.layer_norm_forward if not is_plain(x) else _forward
    y, mean, rstd = call(x, weight, bias, eps)
    return y, mean, rstd


def layer_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) in the dtypes of `x` and `weight`."""
    call = torch.ops.ds.layer_norm_backward if not is_plain(dy) else _backward
    dx, dweight, dbias = call(dy, x, weight, mean, rstd)
    return dx, dweight, dbias


def _forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> Any:
    with torch.no_grad():
        return run(DEFINITIONS[0], x, weight, bias, eps)


def _backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor) -> Any:
    with torch.no_grad():
        return run(DEFINITIONS[1], dy, x, weight, mean, rstd)


def _check_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> None:
    check_rows("layer_norm", x, weight)
    if bias is not None:
        check_vector("layer_norm", "bias", bias, x)
        if bias.dtype != weight.dtype:
            raise OpError(f"layer_norm: bias must be {name_of(weight.dtype)} like weight, got {name_of(bias.dtype)}.")


def _check_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
) -> None:
    check_rows("layer_norm_backward", x, weight)
    check_gradient("layer_norm_backward", dy, x, mean=mean, rstd=rstd)


def _reference_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = x.float().contiguous()
    mean = values.mean(-1)
    centered = values - mean.unsqueeze(-1)
    rstd = 1.0 / (centered.square().mean(-1) + eps).sqrt()
    y = centered * rstd.unsqueeze(-1) * weight.float()
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype), mean, rstd


def _reference_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradient, scale = dy.float().contiguous(), rstd.unsqueeze(-1)
    normalized = (x.float().contiguous() - mean.unsqueeze(-1)) * scale
    weighted = gradient * weight.float()
    along = (weighted * normalized).mean(-1, keepdim=True)
    shift = weighted.mean(-1, keepdim=True)
    dx = (weighted - normalized * along - shift) * scale
    dweight = (gradient * normalized).reshape(-1, x.shape[-1]).sum(0)
    dbias = gradient.reshape(-1, x.shape[-1]).sum(0)
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


def _fake_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = x.shape[:-1]
    return y, x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)


def _fake_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return dx, dweight, torch.empty_like(dweight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, weight, bias, _ = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: torch.Tensor | None, *statistics: object) -> tuple[Any, Any, Any, None]:
    if dy is None:
        return None, None, None, None
    x, weight, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.ds.layer_norm_backward(dy, x, weight, mean, rstd)
    return dx, dweight, dbias if ctx.has_bias else None, None


_FORWARD_CASES = tuple(
    OpCase(
        f"{name}_{'bias' if bias else 'no_bias'}",
        {
            "x": x,
            "weight": TensorSpec(x.shape[-1:], weight),
            "bias": TensorSpec(x.shape[-1:], weight) if bias else None,
        },
        {"eps": 1e-5},
        exactness=FORWARD_EXACTNESS,
    )
    for bias in (True, False)
    for name, x, weight in ROW_SPECS
)
_BACKWARD_CASES = tuple(
    OpCase(
        name,
        {
            "dy": replace(x, scale=0.1),
            "x": x,
            "weight": TensorSpec(x.shape[-1:], weight),
            "mean": TensorSpec(x.shape[:-1], "float32", Fill.NORMAL, 0.1 * x.scale),
            "rstd": TensorSpec(x.shape[:-1], "float32", Fill.SQUARES, 1.0 / x.scale),
        },
        exactness=BACKWARD_EXACTNESS,
    )
    for name, x, weight in ROW_SPECS
)

DEFINITIONS = (
    OpDefinition(
        schema="layer_norm_forward(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
        check=_check_forward,
        reference=_reference_forward,
        fake=_fake_forward,
        autograd=Autograd(_differentiate, _setup_context),
        cases=_FORWARD_CASES,
    ),
    OpDefinition(
        schema=(
            "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd) "
            "-> (Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        reference=_reference_backward,
        fake=_fake_backward,
        autograd=None,
        cases=_BACKWARD_CASES,
    ),
)
