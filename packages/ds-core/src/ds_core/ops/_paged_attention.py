"""paged_attention: attention of ragged tokens to keys and values that lie in blocks of a cache."""

from __future__ import annotations

import torch

from ds_core.errors import OpError
from ds_core.ops._paged_attention_cases import CASES
from ds_core.ops.checks import (
    expect_device,
    expect_dtype,
    expect_integers,
    expect_like,
    expect_shape,
    name_of,
)
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "MAX_HEAD_DIM", "check_cache", "expect_batch", "expect_seen_blocks", "paged_attention"]

MAX_HEAD_DIM = 256
"""Longest head that the attention ops take."""


def paged_attention(
    q: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    query_starts: torch.Tensor,
    *,
    scale: float | None = None,
    window: int = 0,
    alibi_slopes: torch.Tensor | None = None,
    softcap: float = 0.0,
    splits: int = 0,
) -> torch.Tensor:
    """Causal attention of the tokens of several sequences, each to the keys of its own; no gradient.

    A batch may mix whole prompts, pieces of prompts and single tokens of sequences that go on: token i of the n of a
    sequence with `length` keys stands at position ``length - n + i`` and sees the keys up to there. Keys and values
    of the tokens themselves are written before the call, with `paged_kv_write_`.

    Args:
        q: [tokens, heads, head_dim], float32, bfloat16 or float16, any strides; the tokens of one sequence after those
            of the other. Arithmetic is in float32 with one rounding. head_dim is at most 256.
        key_cache, value_cache: [blocks, block_size, kv_heads, head_dim] like `q`; kv_heads divides heads, and
            neighbouring heads share keys (grouped-query attention; multi-query with one).
        block_table: [sequences, blocks of the longest] int32 or int64: key p of a sequence lies in block
            ``block_table[s, p // block_size]`` at ``p % block_size``. Entries of blocks that no token sees are not
            read, so a table may hold -1 for blocks not there yet, or given back behind the window.
        lengths: [sequences], dtype of `block_table`: keys of each sequence, its tokens in `q` included.
        query_starts: [sequences + 1], dtype of `block_table`: tokens ``query_starts[s]`` to ``query_starts[s + 1]``
            are those of sequence s. It begins with 0 and never falls; tokens after the last are padding and give 0.
        scale: of the products; by default ``head_dim ** -0.5``.
        window: keys a token sees, itself included; 0 for all.
        alibi_slopes: [heads] float32: adds ``slope * (key position - query position)``.
        softcap: with c > 0, products become ``c * tanh(product / c)``, before ALiBi.
        splits: parts that kernels cut the keys of a sequence in, to have enough to do with few long sequences; 0
            chooses by the shapes. It changes results by rounding only. The same call always gives the same bits, and
            with 1 a token gets the same bits whatever else is in the batch.

    Returns:
        [tokens, heads, head_dim] like `q`.

    Raises:
        OpError: a shape, dtype or device does not fit; or a block, length or start names what is not there.

    Source: W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP
        2023, section 4.1; ragged batches: Y. Yu et al., "Orca", OSDI 2022; ALiBi: O. Press et al., "Train Short, Test
        Long", 2022, section 3; soft cap: Gemma Team, "Gemma 2", 2024, section 2.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    arguments = (q, key_cache, value_cache, block_table, lengths, query_starts, alibi_slopes)
    y: torch.Tensor
    with torch.no_grad():
        if is_plain(q):
            y = run(DEFINITIONS[0], *arguments, scale, window, softcap, splits)
        else:
            y = torch.ops.ds.paged_attention(*arguments, scale, window, softcap, splits)
    return y


def check_cache(op: str, key_cache: torch.Tensor, value_cache: torch.Tensor) -> None:
    """Two caches [blocks, block_size, kv_heads, head_dim] of one kind."""
    if key_cache.dim() != 4 or min(key_cache.shape[1:]) < 1 or key_cache.shape[-1] > MAX_HEAD_DIM:
        raise OpError(
            f"{op}: key_cache must be [blocks, block_size, kv_heads, head_dim] with head_dim 1 to {MAX_HEAD_DIM}, "
            f"got shape {tuple(key_cache.shape)}."
        )
    expect_dtype(op, "key_cache", key_cache)
    expect_like(op, "value_cache", value_cache, "key_cache", key_cache)


def _check(
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
) -> None:
    op = "paged_attention"
    check_cache(op, key_cache, value_cache)
    kv_heads, head_dim = key_cache.shape[2:]
    if q.dim() != 3 or q.shape[2] != head_dim or q.shape[1] % kv_heads:
        raise OpError(
            f"{op}: q must be [tokens, heads, {head_dim}] with a multiple of the cache's {kv_heads} heads, "
            f"got shape {tuple(q.shape)}."
        )
    expect_device(op, "q", q, "key_cache", key_cache.device)
    if q.dtype != key_cache.dtype:
        raise OpError(f"{op}: q must be {name_of(key_cache.dtype)} like key_cache, got {name_of(q.dtype)}.")
    expect_integers(op, "block_table", block_table, "q", q.device)
    if block_table.dim() != 2:
        raise OpError(f"{op}: block_table must be [sequences, blocks], got shape {tuple(block_table.shape)}.")
    sequences = block_table.shape[0]
    for name, tensor, size in (("lengths", lengths, sequences), ("query_starts", query_starts, sequences + 1)):
        expect_shape(op, name, tensor, (size,), "by the sequences of block_table")
        expect_dtype(op, name, tensor, (block_table.dtype,))
        expect_device(op, name, tensor, "q", q.device)
    if alibi_slopes is not None:
        expect_dtype(op, "alibi_slopes", alibi_slopes, (torch.float32,))
        expect_shape(op, "alibi_slopes", alibi_slopes, q.shape[1:2], "one for each head of q")
        expect_device(op, "alibi_slopes", alibi_slopes, "q", q.device)
    for setting, value in (("window", window), ("softcap", softcap), ("splits", splits)):
        if value < 0:
            raise OpError(f"{op}: {setting} must be 0 or more, got {value}.")


def expect_batch(
    tokens: int, cache: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor, query_starts: torch.Tensor
) -> None:
    """What the starts and lengths of a batch say is there.

    Raises:
        OpError: starts fall or leave the tokens, a length is below its tokens or past the table.
    """
    op, starts, room = "paged_attention", query_starts.tolist(), block_table.shape[1] * cache.shape[1]
    if starts[0] != 0:
        raise OpError(f"{op}: query_starts must begin with 0, got {starts[0]}.")
    for s, length in enumerate(lengths.tolist()):
        count = starts[s + 1] - starts[s]
        if count < 0 or starts[s + 1] > tokens:
            raise OpError(
                f"{op}: query_starts must not fall and end by the {tokens} tokens of q, got {starts[s]} and "
                f"{starts[s + 1]} for sequence {s}."
            )
        if count and not count <= length <= room:
            raise OpError(
                f"{op}: lengths[{s}] is {length}; allowed: {count}, the tokens of the sequence in q, to {room}, the "
                f"keys that {block_table.shape[1]} blocks of {cache.shape[1]} hold."
            )


def expect_seen_blocks(
    cache: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor, query_starts: torch.Tensor, window: int
) -> None:
    """Every block that a token sees is in the cache. `expect_batch` passed.

    Raises:
        OpError: one is not.
    """
    counts = query_starts.diff().tolist()
    for s, (count, length) in enumerate(zip(counts, lengths.tolist(), strict=True)):
        if count:
            _seen_blocks(s, _first_seen(count, length, window), length, cache, block_table)


def _first_seen(count: int, length: int, window: int) -> int:
    return max(0, length - count - window + 1) if window else 0


def _seen_blocks(
    s: int, first: int, last: int, cache: torch.Tensor, block_table: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """(block numbers, position of the first key in them) that hold the keys first to last of sequence s."""
    block_size = cache.shape[1]
    low, high = first // block_size, -(-last // block_size)
    blocks = block_table[s, low:high].to(torch.int64)
    bad = (blocks < 0) | (blocks >= cache.shape[0])
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise OpError(
            f"paged_attention: block_table[{s}, {low + at}] is {int(blocks[at])}; allowed: 0 to {cache.shape[0] - 1}, "
            "the blocks of the cache."
        )
    return blocks, low * block_size


def _reference(
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
    expect_batch(q.shape[0], key_cache, block_table, lengths, query_starts)
    y = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    group = q.shape[1] // key_cache.shape[2]
    starts = query_starts.tolist()
    for s, length in enumerate(lengths.tolist()):
        count = starts[s + 1] - starts[s]
        if count == 0:
            continue
        first = _first_seen(count, length, window)
        blocks, origin = _seen_blocks(s, first, length, key_cache, block_table)
        keys, values = (
            cache[blocks].flatten(0, 1)[first - origin : length - origin].float().repeat_interleave(group, 1)
            for cache in (key_cache, value_cache)
        )
        tokens = slice(starts[s], starts[s + 1])
        scores = torch.einsum("qhd,khd->hqk", q[tokens].float(), keys) * scale
        if softcap > 0:
            scores = softcap * (scores / softcap).tanh()
        distance = torch.arange(first, length, device=q.device) - torch.arange(
            length - count, length, device=q.device
        ).unsqueeze(-1)
        if alibi_slopes is not None:
            scores = scores + alibi_slopes.view(-1, 1, 1) * distance
        unseen = (distance > 0) | ((distance <= -window) if window else False)
        probabilities = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        y[tokens] = torch.einsum("hqk,khd->qhd", probabilities, values).to(q.dtype)
    return y


def _fake(q: torch.Tensor, *arguments: object, **named: object) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


DEFINITIONS = (
    OpDefinition(
        schema=(
            "paged_attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor lengths, "
            "Tensor query_starts, Tensor? alibi_slopes, float scale, int window, float softcap, int splits) -> Tensor"
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=None,
        cases=CASES,
    ),
)
