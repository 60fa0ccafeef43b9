"""linear_weight_only and linear_w8a8: linear layers with a weight of integers or small floats."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops._linear_cases import W8A8_CASES, WEIGHT_ONLY_CASES
from ds_core.ops._packed_weight import (
    BLOCK,
    INTEGER,
    PackedWeight,
    check_grouping,
    check_zeros,
    groups_of,
    packed_bytes,
    unpack_integers,
    unpack_values,
)
from ds_core.ops._quantize import DEFINITIONS as QUANTIZE_DEFINITIONS
from ds_core.ops.checks import FLOATS, expect_device, expect_dtype, expect_shape
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "linear_w8a8", "linear_weight_only"]


def linear_weight_only(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias`` with float activations and a quantized weight; dtype of `x`, [..., out_features].

    Products and sums are float32: a group is added up, scaled, and added to the total. A row of the result depends on
    its row of `x` alone, whatever rows are beside it; matrix units (AMX, for bfloat16 and 16 rows or more) add up in an
    order of their own, which changes roundings of float32. Gradients flow to `x` and `bias`; the weight has none.

    Args:
        x: [..., in_features], float32, bfloat16 or float16.
        weight: from `pack_weight`.
        bias: [out_features], float32, bfloat16 or float16.

    Raises:
        OpError: a shape, dtype or device does not fit.
    """
    # Integers leave the format out, so that kernels from before there were formats still serve them.
    more = () if weight.format == INTEGER else (weight.format,)
    return _linear("linear_weight_only", 0, x, weight, bias, *more)


def linear_w8a8(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `linear_weight_only`, with each row of `x` quantized to symmetric int8 first, and sums of a group in int32.

    The integer sums are exact, so the same bits come from every implementation. A row with an infinity or NaN gives
    NaN. Without autograd.
    """
    if weight.format != INTEGER:
        raise OpError(
            f"linear_w8a8: weight must hold integers, got {weight.format}. Use linear_weight_only, or pack_weight "
            "to int8 or int4."
        )
    with torch.no_grad():
        return _linear("linear_w8a8", 1, x, weight, bias)


def _linear(
    name: str, index: int, x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, *more: str
) -> torch.Tensor:
    if x.dim() < 1 or x.shape[-1] != weight.in_features:
        raise OpError(
            f"{name}: x must have {weight.in_features} in its last dimension (in_features of the weight), got "
            f"shape {tuple(x.shape)}."
        )
    arguments = (
        x, weight.codes, weight.scales, weight.zeros, bias, weight.bits, weight.group_size, weight.out_features, *more
    )  # fmt: skip
    learns = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if learns or not is_plain(x):
        y: torch.Tensor = getattr(torch.ops.ds, name)(*arguments)
        return y
    with torch.no_grad():
        y = run(DEFINITIONS[index], *arguments)
    return y


def _check(
    op: str,
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    format: str = INTEGER,
) -> None:
    expect_dtype(op, "x", x)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise OpError(f"{op}: x must have a last dimension that is not empty, got shape {tuple(x.shape)}.")
    inputs, blocks = x.shape[-1], (out_features + BLOCK - 1) // BLOCK
    check_grouping(op, bits, group_size, inputs, format)
    check_zeros(op, zeros, format)
    made = "as pack_weight makes it from a weight of that many inputs and outputs"
    expect_dtype(op, "codes", codes, (torch.uint8,))
    expect_shape(op, "codes", codes, (blocks, packed_bytes(bits, inputs)), made)
    groups = (groups_of(inputs, group_size), blocks * BLOCK)
    expect_dtype(op, "scales", scales, (torch.float32,))
    expect_shape(op, "scales", scales, groups, made)
    if zeros is not None:
        expect_dtype(op, "zeros", zeros, (torch.int8,))
        expect_shape(op, "zeros", zeros, groups, made)
    if bias is not None:
        expect_dtype(op, "bias", bias, FLOATS)
        expect_shape(op, "bias", bias, (out_features,), "one value an output")
    for name, tensor in (("codes", codes), ("scales", scales), ("zeros", zeros), ("bias", bias)):
        if tensor is not None:
            expect_device(op, name, tensor, "x", x.device)


def _check_weight_only(*args: Any, **kwargs: Any) -> None:
    _check("linear_weight_only", *args, **kwargs)


def _check_w8a8(*args: Any, **kwargs: Any) -> None:
    _check("linear_w8a8", *args, **kwargs)


def _reference_weight_only(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    format: str = INTEGER,
) -> torch.Tensor:
    weight = unpack_values(codes, scales, zeros, bits, group_size, out_features, x.shape[-1], format)
    y = x.double() @ weight.t()
    return (y if bias is None else y + bias.double()).to(x.dtype)


def _reference_w8a8(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
) -> torch.Tensor:
    inputs = x.shape[-1]
    q: torch.Tensor
    factors: torch.Tensor
    q, factors, _ = QUANTIZE_DEFINITIONS[0].reference(x, "int8", inputs)
    rows = q.view(-1, inputs).double()
    weight = unpack_integers(codes, zeros, bits, group_size, out_features, inputs).double()
    total = torch.zeros((rows.shape[0], out_features), dtype=torch.float32, device=x.device)
    for group, first in enumerate(range(0, inputs, group_size)):
        part = slice(first, first + group_size)
        exact = (rows[:, part] @ weight[:, part].t()).float()
        total = total + scales[group, :out_features] * exact
    y = total * factors.unsqueeze(1)
    y = y if bias is None else y + bias.float()
    return y.to(x.dtype).view(*x.shape[:-1], out_features)


def _fake(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    format: str = INTEGER,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, codes, scales, zeros, bias, bits, group_size, out_features, format = inputs
    ctx.save_for_backward(codes, scales, zeros)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.weight = (bits, group_size, out_features, x.shape[-1], format)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        dx = dy @ unpack_values(*ctx.saved_tensors, *ctx.weight).to(dy.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[4]:
        dbias = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx, None, None, None, dbias, None, None, None, None


_ARGUMENTS = (
    "(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? bias, int bits, int group_size, SymInt out_features"
)

DEFINITIONS = (
    OpDefinition(
        schema=f'linear_weight_only{_ARGUMENTS}, str format="integer") -> Tensor',
        check=_check_weight_only,
        reference=_reference_weight_only,
        fake=_fake,
        autograd=Autograd(backward=_backward, setup_context=_setup_context),
        cases=WEIGHT_ONLY_CASES,
    ),
    OpDefinition(
        schema=f"linear_w8a8{_ARGUMENTS}) -> Tensor",
        check=_check_w8a8,
        reference=_reference_w8a8,
        fake=_fake,
        autograd=None,
        cases=W8A8_CASES,
    ),
)
