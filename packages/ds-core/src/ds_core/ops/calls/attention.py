"""Attention: over a blocked cache, over the blocks of a layout, and of the Evoformer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ds_core.ops._paged_attention import expect_batch, expect_seen_blocks
from ds_core.ops.calls.kernels import Kernels, Launcher, address, code
from ds_core.ops.checks import expect_rows_exist
from ds_core.ops.native import KernelLibrary

__all__ = ["AttentionOps"]


class _Tensors(NamedTuple):
    """Of a call of tiled attention, in views whose rows are dense: q, k, v [outer, heads, tokens, dim]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    layout: torch.Tensor | None
    key_bias: torch.Tensor | None  # [outer, tokens]
    bias: torch.Tensor | None  # [outer / bias_repeat, heads or 1, tokens, tokens]


class AttentionOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        forward, backward = "ds_tiled_attention_forward_args", "ds_tiled_attention_backward_args"
        self._paged_attention = self.kernel("paged_attention")
        self._paged_kv_write = self.kernel("paged_kv_write_")
        self._block_sparse_forward = self.kernel("block_sparse_attention_forward", forward)
        self._block_sparse_backward = self.kernel("block_sparse_attention_backward", backward)
        self._evoformer_forward = self.kernel("evoformer_attention_forward", forward)
        self._evoformer_backward = self.kernel("evoformer_attention_backward", backward)

    def paged_attention(
        self,
        q: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        block_table: torch.Tensor,
        lengths: torch.Tensor,
        query_starts: torch.Tensor,
        alibi_slopes: torch.Tensor | None,
        scale: float,
        window: int,
        softcap: float,
        splits: int,
    ) -> torch.Tensor:
        """See `ds_core.ops.paged_attention`."""
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
        q, key_cache, value_cache = (_dense_rows(x) for x in (q, key_cache, value_cache))
        block_table, lengths, query_starts = (x.contiguous() for x in (block_table, lengths, query_starts))
        alibi_slopes = None if alibi_slopes is None else alibi_slopes.contiguous()
        try:
            self._paged_attention(
                q.device,
                dtype=code(q),
                index_dtype=code(block_table),
                splits=splits,
                tokens=q.shape[0],
                heads=q.shape[1],
                sequences=block_table.shape[0],
                table_width=block_table.shape[1],
                window=window,
                scale=scale,
                softcap=softcap,
                q_token_stride=q.stride(0),
                q_head_stride=q.stride(1),
                **_caches(key_cache, value_cache),
                q=address(q),
                block_table=address(block_table),
                lengths=address(lengths),
                query_starts=address(query_starts),
                alibi_slopes=address(alibi_slopes),
                y=address(y),
            )
        except IndexError:
            expect_batch(q.shape[0], key_cache, block_table, lengths, query_starts)
            expect_seen_blocks(key_cache, block_table, lengths, query_starts, window)
            raise
        return y

    def paged_kv_write_(
        self,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """See `ds_core.ops.paged_kv_write_`."""
        keys, values = _dense_rows(key_cache), _dense_rows(value_cache)
        key, value, slots = key.contiguous(), value.contiguous(), slots.contiguous()
        try:
            self._paged_kv_write(
                key.device,
                dtype=code(key),
                index_dtype=code(slots),
                tokens=key.shape[0],
                **_caches(keys, values),
                key=address(key),
                value=address(value),
                slots=address(slots),
            )
        except IndexError:
            places = keys.shape[0] * keys.shape[1]
            expect_rows_exist("paged_kv_write_", "slots", slots, places, -1, " to leave a token out")
            raise
        if keys is not key_cache:
            key_cache.copy_(keys)
        if values is not value_cache:
            value_cache.copy_(values)

    def block_sparse_attention_forward(
        self,
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
        """(attention, log-sum-exp), see `ds_core.ops.block_sparse_attention`."""
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        tensors = _block_sparse(q, k, v, layout, key_bias, bias)
        self._block_sparse_forward(
            q.device,
            **_call(tensors, y, block_size=block_size, scale=scale, causal=causal),
            y=address(y),
            lse=address(lse),
        )
        return y, lse

    def block_sparse_attention_backward(
        self,
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
        """(dq, dk, dv, dkey_bias, dbias)."""
        dy, y, lse = dy.contiguous(), y.contiguous(), lse.contiguous()
        gradients = _gradients(q, (key_bias, need_key_bias), (bias, need_bias))
        tensors = _block_sparse(q, k, v, layout, key_bias, bias)
        self._block_sparse_backward(
            q.device,
            **_call(tensors, y, block_size=block_size, scale=scale, causal=causal),
            **_backward(dy, y, lse, gradients),
        )
        return gradients

    def evoformer_attention_forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask_bias: torch.Tensor | None,
        pair_bias: torch.Tensor | None,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(attention, log-sum-exp), see `ds_core.ops.evoformer_attention`."""
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
        *leading, residues, heads, _ = q.shape
        lse = q.new_empty((*leading, heads, residues), dtype=torch.float32)
        tensors = _evoformer(q, k, v, mask_bias, pair_bias)
        self._evoformer_forward(
            q.device, **_call(tensors, _heads_first(y), scale=scale), y=address(y), lse=address(lse)
        )
        return y, lse

    def evoformer_attention_backward(
        self,
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
        """(dq, dk, dv, dmask_bias, dpair_bias)."""
        dy, y, lse = dy.contiguous(), y.contiguous(), lse.contiguous()
        gradients = _gradients(q, (mask_bias, need_mask_bias), (pair_bias, need_pair_bias))
        tensors = _evoformer(q, k, v, mask_bias, pair_bias)
        self._evoformer_backward(
            q.device, **_call(tensors, _heads_first(y), scale=scale), **_backward(dy, y, lse, gradients)
        )
        return gradients


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    """`x`, copied only if the elements of a row are apart."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _caches(key_cache: torch.Tensor, value_cache: torch.Tensor) -> dict[str, Any]:
    """What kernels are told of a cache."""
    fields: dict[str, Any] = dict(
        zip(("blocks", "block_size", "kv_heads", "dim"), key_cache.shape, strict=True),
        key_cache=address(key_cache),
        value_cache=address(value_cache),
    )
    for name, cache in (("key", key_cache), ("value", value_cache)):
        for place, stride in zip(("block", "slot", "head"), cache.stride(), strict=False):
            fields[f"{name}_{place}_stride"] = stride
    return fields


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    """[outer, heads, tokens, dim] of [..., tokens, heads, dim]."""
    return x.reshape(x.shape[:-3].numel(), *x.shape[-3:]).transpose(1, 2)


def _block_sparse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: torch.Tensor,
    key_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> _Tensors:
    dense_bias = None if key_bias is None else key_bias.contiguous()
    return _Tensors(_dense_rows(q), _dense_rows(k), _dense_rows(v), layout.contiguous(), dense_bias, bias)


def _evoformer(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_bias: torch.Tensor | None,
    pair_bias: torch.Tensor | None,
) -> _Tensors:
    q, k, v = (_heads_first(_dense_rows(x)) for x in (q, k, v))
    mask = None if mask_bias is None else mask_bias.reshape(q.shape[0], q.shape[2]).contiguous()
    pair = None if pair_bias is None else pair_bias.reshape(pair_bias.shape[:-3].numel(), *pair_bias.shape[-3:])
    return _Tensors(q, k, v, None, mask, pair)


def _call(
    tensors: _Tensors, y: torch.Tensor, *, block_size: int = 0, scale: float, causal: bool = False
) -> dict[str, Any]:
    """Fields that the forward and the backward struct share; `y` [outer, heads, tokens, dim] for its strides."""
    q, k, v, layout, key_bias, bias = tensors
    outer, heads, tokens, dim = q.shape
    fields: dict[str, Any] = {
        "dtype": code(q),
        "key_bias_dtype": code(key_bias),
        "bias_dtype": code(bias),
        "causal": causal,
        "block_size": block_size,
        "scale": scale,
        "outer": outer,
        "heads": heads,
        "tokens": tokens,
        "dim": dim,
        "layout_head_stride": layout.stride(0) if layout is not None and layout.shape[0] > 1 else 0,
        "bias_repeat": 1 if bias is None or bias.shape[0] == 0 else max(1, outer // bias.shape[0]),
        "bias_heads": 1 if bias is None else max(1, bias.shape[1]),
        "q": address(q),
        "k": address(k),
        "v": address(v),
        "layout": address(layout),
        "key_bias": address(key_bias),
        "bias": address(bias),
    }
    for name, x in (("q", q), ("k", k), ("v", v), ("y", y)):
        for place, stride in zip(("outer", "head", "token"), x.stride(), strict=False):
            fields[f"{name}_{place}_stride"] = stride
    strides = (0, 0, 0, 0) if bias is None else bias.stride()
    for place, stride in zip(("outer", "head", "query", "key"), strides, strict=True):
        fields[f"bias_{place}_stride"] = stride
    return fields


def _gradients(
    q: torch.Tensor, key_bias: tuple[torch.Tensor | None, bool], bias: tuple[torch.Tensor | None, bool]
) -> tuple[torch.Tensor, ...]:
    """Room for the gradients of q, k, v and the biases; no element for a bias that needs none.

    Without scores no kernel writes, and the gradient of a bias that is there all the same is 0.
    """
    optional = (
        like.new_empty(like.shape) if needed and like is not None else q.new_empty((0,))
        for like, needed in (key_bias, bias)
    )
    if q.numel() == 0:
        optional = (gradient.zero_() for gradient in optional)
    return (*(q.new_empty(q.shape) for _ in range(3)), *optional)


def _backward(
    dy: torch.Tensor, y: torch.Tensor, lse: torch.Tensor, gradients: tuple[torch.Tensor, ...]
) -> dict[str, int]:
    """Fields of the backward struct alone. A gradient of no element is NULL: not needed, or nothing to write."""
    names = ("dq", "dk", "dv", "dkey_bias", "dbias")
    fields = {name: address(x) if x.numel() else 0 for name, x in zip(names, gradients, strict=True)}
    return {"dy": address(dy), "y": address(y), "lse": address(lse), **fields}
