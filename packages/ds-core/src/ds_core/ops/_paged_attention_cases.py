"""Conformance cases of paged_attention: batches as lists of (tokens, length), their blocks dealt out backwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ds_core.ops.case import Exactness, Layout, OpCase, TensorSpec

__all__ = ["CASES"]

_EXACTNESS = Exactness(ulps=1, relative=2e-5)
"""Sums over keys run in another order than torch's; one rounding at the end may fall to the other side."""

_MIXED = ((1, 41), (7, 7), (0, 12), (5, 26), (1, 1))
"""(tokens in q, keys): a decode, a whole prompt, a sequence that waits, a piece of a prompt, a first token."""


def _integers(shape: tuple[int, ...], values: Sequence[int], dtype: str) -> TensorSpec:
    return TensorSpec(shape, dtype, values=tuple(values))


def _table(batch: Sequence[tuple[int, int]], block_size: int, width: int, window: int) -> tuple[list[int], int]:
    """(table row by row, blocks of the cache): blocks in use are dealt from the last down, others are -1."""
    needed = [range(max(0, n - t - window + 1) // block_size if window else 0, -(-n // block_size)) for t, n in batch]
    blocks = sum(len(used) for used in needed) + 1  # block 0 belongs to nobody
    free = iter(range(blocks - 1, 0, -1))
    return [next(free) if place in used else -1 for used in needed for place in range(width)], blocks


def _case(
    name: str,
    batch: Sequence[tuple[int, int]],
    heads: tuple[int, int] = (2, 2),
    head_dim: int = 16,
    dtype: str = "float32",
    *,
    block_size: int = 8,
    padding: int = 0,
    index: str = "int32",
    alibi: bool = False,
    layout: Layout = Layout.CONTIGUOUS,
    cache_layout: Layout = Layout.CONTIGUOUS,
    **more: Any,
) -> OpCase:
    scalars = {"scale": head_dim**-0.5, "window": 0, "softcap": 0.0, "splits": 0, **more}
    tokens = sum(count for count, _ in batch)
    width = max((-(-length // block_size) for _, length in batch), default=0) + 1
    table, blocks = _table(batch, block_size, width, scalars["window"])
    cache = TensorSpec((blocks, block_size, heads[1], head_dim), dtype, layout=cache_layout)
    return OpCase(
        name,
        {
            "q": TensorSpec((tokens + padding, heads[0], head_dim), dtype, scale=2.0, layout=layout),
            "key_cache": cache,
            "value_cache": cache,
            "block_table": _integers((len(batch), width), table, index),
            "lengths": _integers((len(batch),), [length for _, length in batch], index),
            "query_starts": _integers(
                (len(batch) + 1,), list(accumulate((count for count, _ in batch), initial=0)), index
            ),
            "alibi_slopes": _integers(heads[:1], [0.5**n for n in range(1, heads[0] + 1)], "float32")  # type: ignore[misc]
            if alibi
            else None,
        },
        scalars,
        exactness=_EXACTNESS,
    )


CASES = (
    *(_case(dtype, _MIXED, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")),
    _case("one_token", [(1, 1)], (1, 1), 8),
    _case("one_long_decode", [(1, 301)], (2, 1), 24, block_size=16),
    _case("grouped_heads", _MIXED, (6, 2), 16, "bfloat16"),
    _case("one_key_head", _MIXED, (5, 1), 20),
    _case("more_rows_than_a_tile", [(40, 40), (9, 30)], (4, 2), 12),
    _case("long_prompts", [(70, 70), (30, 95)], (2, 1), 12, "bfloat16"),
    _case("long_prompts_window_and_parts", [(40, 90)], (2, 1), 8, window=21, splits=2, softcap=4.0, alibi=True),
    _case("long_prompts_of_long_heads", [(33, 40)], (1, 1), 80),
    _case("blocks_of_one", [(3, 9), (1, 5)], block_size=1),
    _case("odd_blocks", _MIXED, block_size=5, index="int64"),
    _case("large_blocks", [(1, 70), (4, 33)], block_size=64),
    _case("window", [(1, 60), (9, 40), (1, 3)], window=7),
    _case("window_of_one", [(6, 20)], window=1),
    _case("window_longer_than_all", _MIXED, window=1000),
    _case("alibi", _MIXED, (4, 2), alibi=True),
    _case("soft_cap", _MIXED, softcap=3.0),
    _case("all_at_once", _MIXED, (4, 2), 16, "float16", window=9, softcap=5.0, alibi=True, scale=0.5, splits=2),
    _case("two_splits", _MIXED, splits=2),
    _case("splits_of_a_long_decode", [(1, 150), (2, 40)], (4, 1), 16, "bfloat16", splits=5),
    _case("more_splits_than_keys", [(1, 3), (2, 2)], splits=8),
    _case("padding_after_the_last_token", _MIXED, padding=9),
    _case("padding_and_splits", [(1, 20)], padding=3, splits=2),
    _case("no_tokens", [(0, 5), (0, 0)]),
    _case("no_sequences", []),
    _case("only_padding", [], padding=3, index="int64"),
    _case("odd_head", _MIXED, (2, 1), 33, "bfloat16"),
    _case("head_of_one", [(3, 5)], (1, 1), 1),
    _case("head_of_80", [(2, 20)], (1, 1), 80, "float16"),
    _case("head_of_128", [(2, 35)], (2, 1), 128),
    _case("head_of_256", [(2, 35)], (1, 1), 256, "bfloat16"),
    _case("head_of_200", [(1, 18)], (2, 1), 200),
    _case("transposed", _MIXED, layout=Layout.TRANSPOSED, cache_layout=Layout.TRANSPOSED),
    _case("strided", _MIXED, layout=Layout.STRIDED, cache_layout=Layout.STRIDED),
    _case("unaligned", _MIXED, dtype="bfloat16", layout=Layout.OFFSET, cache_layout=Layout.OFFSET),
)
