"""evoformer_attention: attention of AlphaFold's Evoformer, with a mask and a pair bias, forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops._attention_common import (
    BACKWARD_EXACTNESS,
    FORWARD_EXACTNESS,
    attend,
    check_gradient,
    check_heads,
    differentiate,
    expanded,
    reduced,
)
from ds_core.ops.case import Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_device, expect_dtype, expect_shape
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "evoformer_attention", "evoformer_attention_backward"]


def evoformer_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_bias: torch.Tensor | None = None,
    pair_bias: torch.Tensor | None = None,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """``softmax(q k^T * scale + mask_bias + pair_bias) v`` along the residues of each sequence; differentiable in all.

    Row-wise and, with the two dimensions swapped by the caller, column-wise attention over an alignment, and triangle
    attention around the starting and the ending node. No tensor of scores is kept.

    Args:
        q, k, v: [*, sequences, residues, heads, dim], float32, bfloat16 or float16, any strides, dim up to 256.
            Arithmetic is in float32 with one rounding.
        mask_bias: expands to [*, sequences, 1, 1, residues], float32, bfloat16 or float16: added for each key.
        pair_bias: expands to [*, 1, heads, residues, residues]: the same for every sequence.
        scale: by default ``dim ** -0.5``.

    Returns:
        [*, sequences, residues, heads, dim] like `q`. A residue with -inf for every key gives 0.

    Raises:
        OpError: a shape, dtype or device does not fit.

    Source: J. Jumper et al., "Highly accurate protein structure prediction with AlphaFold", 2021, supplement,
        algorithms 7, 8, 13 and 14 (without gate and projections).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.dim() >= 4:
        mask_bias, pair_bias = (
            expanded(bias, shape) for bias, shape in zip((mask_bias, pair_bias), _bias_shapes(q), strict=True)
        )
    tensors = (q, k, v, mask_bias, pair_bias)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    call = torch.ops.ds.evoformer_attention_forward if wanted or not is_plain(q) else _forward
    y: torch.Tensor = call(*tensors, scale)[0]
    return y


def evoformer_attention_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_bias: torch.Tensor | None,
    pair_bias: torch.Tensor | None,
    y: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    need_mask_bias: bool,
    need_pair_bias: bool,
) -> tuple[torch.Tensor, ...]:
    """(dq, dk, dv, dmask_bias, dpair_bias), the last two of no element where they are not needed. Without autograd."""
    arguments = (dy, q, k, v, mask_bias, pair_bias, y, lse, scale, need_mask_bias, need_pair_bias)
    with torch.no_grad():
        call = torch.ops.ds.evoformer_attention_backward if not is_plain(dy) else _backward
        gradients: tuple[torch.Tensor, ...] = call(*arguments)
    return gradients


def _forward(*arguments: Any) -> Any:
    with torch.no_grad():
        return run(DEFINITIONS[0], *arguments)


def _backward(*arguments: Any) -> Any:
    return run(DEFINITIONS[1], *arguments)


def _bias_shapes(q: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    *leading, sequences, residues, heads, _ = q.shape
    return (*leading, sequences, 1, 1, residues), (*leading, 1, heads, residues, residues)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_bias: torch.Tensor | None,
    pair_bias: torch.Tensor | None,
    scale: float,
) -> None:
    op, dims = "evoformer_attention", "[*, sequences, residues, heads, dim]"
    if q.dim() < 4:
        raise OpError(f"{op}: q must be {dims}, got shape {tuple(q.shape)}.")
    check_heads(op, q, k, v, dims)
    names, reasons = ("mask_bias", "pair_bias"), ("one for each key", "one for each pair of residues and head")
    for name, why, bias, shape in zip(names, reasons, (mask_bias, pair_bias), _bias_shapes(q), strict=True):
        if bias is not None:
            expect_dtype(op, name, bias)
            expect_shape(op, name, bias, shape, why)
            expect_device(op, name, bias, "q", q.device)


def _check_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_bias: torch.Tensor | None,
    pair_bias: torch.Tensor | None,
    y: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    need_mask_bias: bool,
    need_pair_bias: bool,
) -> None:
    _check(q, k, v, mask_bias, pair_bias, scale)
    *leading, residues, heads, _ = q.shape
    check_gradient("evoformer_attention_backward", dy, q, y, lse, (*leading, heads, residues))
    for name, needed, tensor in (("mask", need_mask_bias, mask_bias), ("pair", need_pair_bias, pair_bias)):
        if needed and tensor is None:
            raise OpError(f"evoformer_attention_backward: need_{name}_bias is set, and {name}_bias is None. Pass it.")


def _added(mask_bias: torch.Tensor | None, pair_bias: torch.Tensor | None) -> torch.Tensor | None:
    given = [bias.float() for bias in (mask_bias, pair_bias) if bias is not None]
    return given[0] + given[1] if len(given) == 2 else given[0] if given else None


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_bias: torch.Tensor | None,
    pair_bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (x.transpose(-2, -3) for x in (q, k, v))
    y, lse = attend(q, k, v, _added(mask_bias, pair_bias), scale)
    return y.transpose(-2, -3).to(q.dtype).contiguous(), lse.contiguous()


def _reference_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_bias: torch.Tensor | None,
    pair_bias: torch.Tensor | None,
    y: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    need_mask_bias: bool,
    need_pair_bias: bool,
) -> tuple[torch.Tensor, ...]:
    dy, q_first, k_first, v_first, y = (x.transpose(-2, -3) for x in (dy, q, k, v, y))
    found = differentiate(dy, q_first, k_first, v_first, _added(mask_bias, pair_bias), y, lse, scale)
    dmask, dpair = (
        reduced(found.scores, bias) if needed and bias is not None else q.new_empty((0,))
        for needed, bias in ((need_mask_bias, mask_bias), (need_pair_bias, pair_bias))
    )
    dq, dk, dv = (gradient.transpose(-2, -3).to(q.dtype).contiguous() for gradient in found[:3])
    return dq, dk, dv, dmask.contiguous(), dpair.contiguous()


def _fake(q: torch.Tensor, *arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *leading, residues, heads, _ = q.shape
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    return y, q.new_empty((*leading, heads, residues), dtype=torch.float32)


def _fake_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_bias: torch.Tensor | None,
    pair_bias: torch.Tensor | None,
    y: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    need_mask_bias: bool,
    need_pair_bias: bool,
) -> tuple[torch.Tensor, ...]:
    optional = (
        bias.new_empty(bias.shape) if needed and bias is not None else q.new_empty((0,))
        for needed, bias in ((need_mask_bias, mask_bias), (need_pair_bias, pair_bias))
    )
    return (*(q.new_empty(q.shape) for _ in range(3)), *optional)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: torch.Tensor | None, dlse: object) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 6
    need_mask, need_pair = ctx.needs_input_grad[3], ctx.needs_input_grad[4]
    dq, dk, dv, dmask, dpair = torch.ops.ds.evoformer_attention_backward(
        dy, *ctx.saved_tensors, ctx.scale, need_mask, need_pair
    )
    return dq, dk, dv, dmask if need_mask else None, dpair if need_pair else None, None


def _case(
    name: str,
    shape: tuple[int, ...],
    dtype: str = "float32",
    *,
    mask: str | None = "float32",
    pair: str | None = "float32",
    layout: Layout = Layout.CONTIGUOUS,
) -> tuple[OpCase, OpCase]:
    """(forward, backward)."""
    *leading, sequences, residues, heads, dim = shape
    x = TensorSpec(shape, dtype, layout=layout)
    tensors: dict[str, TensorSpec | None] = {
        "q": TensorSpec(shape, dtype, scale=2.0, layout=layout),
        "k": x,
        "v": x,
        "mask_bias": None if mask is None else TensorSpec((*leading, sequences, 1, 1, residues), mask, scale=2.0),
        "pair_bias": None if pair is None else TensorSpec((*leading, 1, heads, residues, residues), pair),
    }
    lse = TensorSpec((*leading, sequences, heads, residues), "float32", Fill.SQUARES, 1.5)
    needs = {"need_mask_bias": mask is not None, "need_pair_bias": pair is not None}
    return (
        OpCase(name, tensors, {"scale": dim**-0.5}, exactness=FORWARD_EXACTNESS),
        OpCase(
            name, {"dy": x, **tensors, "y": x, "lse": lse}, {"scale": dim**-0.5, **needs}, exactness=BACKWARD_EXACTNESS
        ),
    )


_PAIRS = (
    *(_case(dtype, (1, 3, 21, 2, 16), dtype, mask=dtype, pair=dtype) for dtype in ("float32", "bfloat16", "float16")),
    _case("no_bias", (1, 2, 19, 2, 8), mask=None, pair=None),
    _case("mask_alone", (1, 2, 19, 2, 8), "bfloat16", pair=None),
    _case("pair_alone", (2, 2, 19, 1, 8), mask=None, pair="bfloat16"),
    _case("two_batches", (2, 2, 35, 2, 8)),
    _case("more_batches", (2, 1, 2, 9, 1, 8)),
    _case("no_batches_before_sequences", (2, 17, 2, 8)),
    _case("longer_than_a_tile", (1, 1, 70, 1, 8), "bfloat16"),
    _case("one_residue", (1, 2, 1, 1, 8)),
    _case("no_residues", (1, 2, 0, 1, 8)),
    _case("no_sequences", (1, 0, 5, 2, 8)),
    _case("no_heads", (1, 2, 5, 0, 8)),
    _case("odd_head", (1, 2, 9, 3, 5), "float16"),
    _case("head_of_32", (1, 1, 33, 1, 32)),
    _case("head_of_64", (1, 1, 18, 1, 64), "bfloat16"),
    _case("head_of_128", (1, 1, 18, 1, 128)),
    _case("head_of_256", (1, 1, 9, 1, 256), "float16"),
    _case("transposed", (1, 2, 9, 2, 8), layout=Layout.TRANSPOSED),
    _case("strided", (1, 2, 9, 2, 8), layout=Layout.STRIDED),
    _case("unaligned", (1, 2, 9, 2, 8), "bfloat16", layout=Layout.OFFSET),
)

DEFINITIONS = (
    OpDefinition(
        schema=(
            "evoformer_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? mask_bias, Tensor? pair_bias, "
            "float scale) -> (Tensor, Tensor)"
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=Autograd(_differentiate, _setup_context),
        cases=tuple(forward for forward, _ in _PAIRS),
    ),
    OpDefinition(
        schema=(
            "evoformer_attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor? mask_bias, "
            "Tensor? pair_bias, Tensor y, Tensor lse, float scale, bool need_mask_bias, bool need_pair_bias) "
            "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        reference=_reference_backward,
        fake=_fake_backward,
        autograd=None,
        cases=tuple(backward for _, backward in _PAIRS),
    ),
)
