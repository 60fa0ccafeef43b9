"""block_sparse_attention: attention to the blocks of keys that a layout names, forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops._attention_common import attend, check_gradient, check_heads, differentiate, expanded, reduced
from ds_core.ops._block_sparse_attention_cases import BACKWARD_CASES, CASES
from ds_core.ops.checks import expect_device, expect_dtype, expect_shape
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["BLOCK_SIZES", "DEFINITIONS", "block_sparse_attention", "block_sparse_attention_backward"]

BLOCK_SIZES = (16, 32, 64, 128)
"""Sides of the square blocks of scores that a layout keeps or leaves out."""


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: torch.Tensor,
    block_size: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_padding_mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``softmax(q @ k.T * scale + bias) @ v`` over the blocks of the layout; differentiable in q, k, v, mask and bias.

    It equals dense attention with everything outside of the layout masked. Memory and work are those of the blocks.

    Args:
        q, k, v: [batch, heads, tokens, dim], float32, bfloat16 or float16, any strides, dim up to 256. Arithmetic is
            in float32 with one rounding.
        layout: [heads or 1, blocks, blocks] bool, blocks of queries by blocks of keys, ``ceil(tokens / block_size)``
            of each; see `ds_core.ops.sparsity` for the common ones.
        block_size: 16, 32, 64 or 128.
        scale: by default ``dim ** -0.5``.
        causal: a query sees no later key, whatever the layout says.
        key_padding_mask: [batch, tokens] of each key: bool, True where it may be seen; or a number that is added.
        bias: added to the scaled products; expands to [batch, heads, tokens, tokens], float32, bfloat16 or float16.

    Returns:
        [batch, heads, tokens, dim] like `q`. A query that sees nothing gives 0, and gets and gives no gradient.

    Raises:
        OpError: a shape, dtype or device does not fit.

    Source: R. Child et al., "Generating Long Sequences with Sparse Transformers", 2019, sections 4.2 and 5.5; tiles:
        T. Dao, "FlashAttention-2", 2023, section 3.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    key_bias = _as_bias(key_padding_mask)
    if bias is not None:
        leading = (1,) * (4 - bias.dim()) + tuple(bias.shape[:-2]) if bias.dim() >= 2 else (1, 1)
        bias = expanded(bias, (*leading, q.shape[-2], q.shape[-2]))
    tensors = (q, k, v, layout, key_bias, bias)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    call = torch.ops.ds.block_sparse_attention_forward if wanted or not is_plain(q) else _forward
    y: torch.Tensor = call(*tensors, block_size, scale, causal)[0]
    return y


def block_sparse_attention_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: torch.Tensor,
    key_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    lse: torch.Tensor,
    block_size: int,
    scale: float,
    causal: bool,
    need_key_bias: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, ...]:
    """(dq, dk, dv, dkey_bias, dbias), the last two of no element where they are not needed. Without autograd."""
    arguments = (dy, q, k, v, layout, key_bias, bias, y, lse, block_size, scale, causal, need_key_bias, need_bias)
    with torch.no_grad():
        call = torch.ops.ds.block_sparse_attention_backward if not is_plain(dy) else _backward
        gradients: tuple[torch.Tensor, ...] = call(*arguments)
    return gradients


def _forward(*arguments: Any) -> Any:
    with torch.no_grad():
        return run(DEFINITIONS[0], *arguments)


def _backward(*arguments: Any) -> Any:
    return run(DEFINITIONS[1], *arguments)


def _as_bias(mask: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: torch.Tensor,
    key_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    block_size: int,
    scale: float,
    causal: bool,
) -> None:
    op = "block_sparse_attention"
    if q.dim() != 4:
        raise OpError(f"{op}: q must be [batch, heads, tokens, dim], got shape {tuple(q.shape)}.")
    check_heads(op, q, k, v, "[batch, heads, tokens, dim]")
    if block_size not in BLOCK_SIZES:
        raise OpError(f"{op}: block_size must be {', '.join(map(str, BLOCK_SIZES))}, got {block_size}.")
    batch, heads, tokens = q.shape[:3]
    blocks = -(-tokens // block_size)
    expect_dtype(op, "layout", layout, (torch.bool,))
    expect_device(op, "layout", layout, "q", q.device)
    if layout.dim() != 3 or layout.shape[0] not in (1, heads) or tuple(layout.shape[1:]) != (blocks, blocks):
        raise OpError(
            f"{op}: layout must have shape ({heads} or 1, {blocks}, {blocks}), heads by the blocks of {block_size} "
            f"that hold {tokens} tokens, got {tuple(layout.shape)}."
        )
    if key_bias is not None:
        expect_dtype(op, "key_padding_mask", key_bias)
        expect_shape(op, "key_padding_mask", key_bias, (batch, tokens), "one for each key")
        expect_device(op, "key_padding_mask", key_bias, "q", q.device)
    if bias is not None:
        expect_dtype(op, "bias", bias)
        expect_device(op, "bias", bias, "q", q.device)
        leading = bias.dim() == 4 and bias.shape[0] in (1, batch) and bias.shape[1] in (1, heads)
        if not leading or tuple(bias.shape[2:]) != (tokens, tokens):
            raise OpError(
                f"{op}: bias must expand to the scores, {(batch, heads, tokens, tokens)}, got {tuple(bias.shape)}."
            )


def _check_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: torch.Tensor,
    key_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    lse: torch.Tensor,
    block_size: int,
    scale: float,
    causal: bool,
    need_key_bias: bool,
    need_bias: bool,
) -> None:
    _check(q, k, v, layout, key_bias, bias, block_size, scale, causal)
    check_gradient("block_sparse_attention_backward", dy, q, y, lse, tuple(q.shape[:3]))
    for name, needed, tensor in (("key_bias", need_key_bias, key_bias), ("bias", need_bias, bias)):
        if needed and tensor is None:
            raise OpError(f"block_sparse_attention_backward: need_{name} is set, and {name} is None. Pass it.")


def _added(
    q: torch.Tensor,
    layout: torch.Tensor,
    key_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    block_size: int,
    causal: bool,
) -> torch.Tensor:
    tokens = q.shape[2]
    seen = layout.repeat_interleave(block_size, 1).repeat_interleave(block_size, 2)[:, :tokens, :tokens]
    if causal:
        seen = seen & torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    added = torch.zeros((1, 1, 1, 1), device=q.device) if bias is None else bias.float()
    if key_bias is not None:
        added = added + key_bias.float()[:, None, None, :]
    return torch.where(seen, added, -torch.inf)


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: torch.Tensor,
    key_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    block_size: int,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    y, lse = attend(q, k, v, _added(q, layout, key_bias, bias, block_size, causal), scale)
    return y.to(q.dtype).contiguous(), lse.contiguous()


def _reference_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: torch.Tensor,
    key_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    lse: torch.Tensor,
    block_size: int,
    scale: float,
    causal: bool,
    need_key_bias: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, ...]:
    found = differentiate(dy, q, k, v, _added(q, layout, key_bias, bias, block_size, causal), y, lse, scale)
    dkey_bias, dbias = q.new_empty((0,)), q.new_empty((0,))
    if need_key_bias and key_bias is not None:
        dkey_bias = found.scores.sum((1, 2)).to(key_bias.dtype)
    if need_bias and bias is not None:
        dbias = reduced(found.scores, bias).contiguous()
    return (*(gradient.to(q.dtype).contiguous() for gradient in found[:3]), dkey_bias, dbias)


def _fake(q: torch.Tensor, *arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    return y, q.new_empty(q.shape[:3], dtype=torch.float32)


def _fake_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: torch.Tensor,
    key_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    lse: torch.Tensor,
    block_size: int,
    scale: float,
    causal: bool,
    need_key_bias: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, ...]:
    optional = (
        tensor.new_empty(tensor.shape) if needed and tensor is not None else q.new_empty((0,))
        for needed, tensor in ((need_key_bias, key_bias), (need_bias, bias))
    )
    return (*(q.new_empty(q.shape) for _ in range(3)), *optional)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.block_size, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: torch.Tensor | None, dlse: object) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 9
    need_key_bias, need_bias = ctx.needs_input_grad[4], ctx.needs_input_grad[5]
    dq, dk, dv, dkey_bias, dbias = torch.ops.ds.block_sparse_attention_backward(
        dy, *ctx.saved_tensors, ctx.block_size, ctx.scale, ctx.causal, need_key_bias, need_bias
    )
    return dq, dk, dv, None, dkey_bias if need_key_bias else None, dbias if need_bias else None, None, None, None


DEFINITIONS = (
    OpDefinition(
        schema=(
            "block_sparse_attention_forward(Tensor q, Tensor k, Tensor v, Tensor layout, Tensor? key_bias, "
            "Tensor? bias, int block_size, float scale, bool causal) -> (Tensor, Tensor)"
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=Autograd(_differentiate, _setup_context),
        cases=CASES,
    ),
    OpDefinition(
        schema=(
            "block_sparse_attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor layout, Tensor? key_bias, "
            "Tensor? bias, Tensor y, Tensor lse, int block_size, float scale, bool causal, bool need_key_bias, "
            "bool need_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        reference=_reference_backward,
        fake=_fake_backward,
        autograd=None,
        cases=BACKWARD_CASES,
    ),
)
