"""paged_attention and paged_kv_write_ against plain attention of each sequence in double precision, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
BLOCK = 4


class Server:
    """A cache and the keys and values of sequences, kept apart in double precision for comparison."""

    def __init__(self, sequences: int, dtype: torch.dtype = torch.float32, heads: tuple[int, int] = (4, 2)) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.dtype, self.heads = dtype, heads
        self.width = 8
        blocks = sequences * self.width
        self.table = torch.randperm(blocks, generator=self.generator).view(sequences, self.width)
        self.caches = tuple(torch.full((blocks, BLOCK, heads[1], 8), torch.nan, dtype=dtype) for _ in range(2))
        self.known = [[torch.zeros(0, heads[1], 8) for _ in range(2)] for _ in range(sequences)]

    def step(self, counts: list[int], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(attention of new tokens, some for each sequence; the same by plain torch)."""
        q, k, v = (self._random(sum(counts), heads) for heads in (self.heads[0], self.heads[1], self.heads[1]))
        slots, lengths = [], []
        for s, (count, mine) in enumerate(zip(counts, self.known, strict=True)):
            positions = torch.arange(mine[0].shape[0], mine[0].shape[0] + count)
            slots.append(self.table[s, positions // BLOCK] * BLOCK + positions % BLOCK)
            start = sum(counts[:s])
            mine[:] = [torch.cat((old, new[start : start + count])) for old, new in zip(mine, (k, v), strict=True)]
            lengths.append(mine[0].shape[0])
        ops.paged_kv_write_(*self.caches, k, v, torch.cat(slots))
        starts = torch.tensor([0, *counts]).cumsum(0)
        found = ops.paged_attention(q, *self.caches, self.table, torch.tensor(lengths), starts, **options)
        pieces = [self._plain(s, q[starts[s] : starts[s + 1]], **options) for s in range(len(counts))]
        return found, torch.cat(pieces)

    def _random(self, tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, 8, generator=self.generator).to(self.dtype)

    def _plain(self, s: int, q: torch.Tensor, **options: Any) -> torch.Tensor:
        k, v = (known.double().repeat_interleave(self.heads[0] // self.heads[1], 1) for known in self.known[s])
        scores = torch.einsum("qhd,khd->hqk", q.double(), k) * options.get("scale", 8**-0.5)
        if cap := options.get("softcap"):
            scores = cap * torch.tanh(scores / cap)
        places = torch.arange(k.shape[0])
        mine = places[k.shape[0] - q.shape[0] :, None]
        if options.get("alibi_slopes") is not None:
            scores = scores - options["alibi_slopes"].double()[:, None, None] * (mine - places)
        seen = places <= mine
        if window := options.get("window"):
            seen = seen & (places > mine - window)
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_prompts_pieces_and_single_tokens_share_batches(dtype: torch.dtype) -> None:
    server = Server(3, dtype)
    for counts in ([7, 0, 3], [1, 9, 0], [1, 1, 5], [1, 1, 1]):
        found, want = server.step(counts)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    "options",
    [
        {"window": 3},
        {"softcap": 2.0},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
        {"scale": 1.5, "window": 5, "softcap": 1.0, "alibi_slopes": torch.tensor([1.0, 0.5, 0.0, -0.5])},
        {"splits": 3},
    ],
)
def test_options_change_the_scores_as_they_say(options: dict[str, Any]) -> None:
    server = Server(2)
    server.step([9, 4])
    found, want = server.step([5, 1], **options)
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (6, 3), (4, 4)])
def test_neighbouring_heads_share_keys(heads: tuple[int, int]) -> None:
    found, want = Server(2, heads=heads).step([6, 3])
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)


def test_padding_behind_the_tokens_gives_zeros() -> None:
    cache = torch.ones(1, BLOCK, 1, 8)
    q = torch.ones(5, 2, 8)
    y = ops.paged_attention(q, cache, cache, torch.tensor([[0]]), torch.tensor([2]), torch.tensor([0, 2]))
    assert (y[:2] == 1).all() and (y[2:] == 0).all()


def test_blocks_behind_the_window_are_not_read() -> None:
    cache = torch.randn(2, BLOCK, 1, 8)
    table = torch.tensor([[-1, 1, 0]])
    batch = (torch.tensor([9]), torch.tensor([0, 1]))
    y = ops.paged_attention(torch.randn(1, 1, 8), cache, cache, table, *batch, window=5)
    assert torch.isfinite(y).all()
    with pytest.raises(OpError, match=r"block_table\[0, 0\] is -1; allowed: 0 to 1, the blocks of the cache"):
        ops.paged_attention(torch.randn(1, 1, 8), cache, cache, table, *batch, window=6)


def test_written_rows_are_where_their_slots_say_and_others_stay() -> None:
    key_cache, value_cache = torch.zeros(3, BLOCK, 2, 8), torch.zeros(3, BLOCK, 2, 8)
    key, value = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    slots = torch.tensor([9, -1, 0, 5], dtype=torch.int32)
    ops.paged_kv_write_(key_cache, value_cache, key, value, slots)
    for cache, rows in ((key_cache, key), (value_cache, value)):
        assert torch.equal(cache.view(-1, 2, 8)[[9, 0, 5]], rows[[0, 2, 3]])
        assert int((cache.view(-1, 16) != 0).any(1).sum()) == 3


@pytest.mark.parametrize("bad", [-2, 12, 2**40])
def test_a_slot_outside_of_the_cache_is_named(bad: int) -> None:
    cache, rows = torch.zeros(3, BLOCK, 1, 8), torch.zeros(2, 1, 8)
    with pytest.raises(OpError, match=rf"slots\[1\] is {bad}; allowed: 0 to 11, or -1 to leave a token out"):
        ops.paged_kv_write_(cache, cache.clone(), rows, rows, torch.tensor([3, bad]))


def batch(**changed: Any) -> dict[str, Any]:
    cache = torch.zeros(4, BLOCK, 2, 8)
    return {
        "q": torch.zeros(5, 4, 8),
        "key_cache": cache,
        "value_cache": cache,
        "block_table": torch.tensor([[0, 1], [2, 3]]),
        "lengths": torch.tensor([3, 6]),
        "query_starts": torch.tensor([0, 3, 5]),
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query_starts": torch.tensor([1, 3, 5])}, "query_starts must begin with 0, got 1"),
        ({"query_starts": torch.tensor([0, 3, 2])}, "must not fall .* got 3 and 2 for sequence 1"),
        ({"query_starts": torch.tensor([0, 3, 6])}, "end by the 5 tokens of q, got 3 and 6 for sequence 1"),
        (
            {"lengths": torch.tensor([2, 6])},
            r"lengths\[0\] is 2; allowed: 3, .* to 8, the keys that 2 blocks of 4 hold",
        ),
        ({"lengths": torch.tensor([3, 9])}, r"lengths\[1\] is 9; allowed: 2"),
        ({"block_table": torch.tensor([[0, 1], [2, 4]])}, r"block_table\[1, 1\] is 4; allowed: 0 to 3"),
        ({"q": torch.zeros(5, 3, 8)}, r"q must be \[tokens, heads, 8\] with a multiple of the cache's 2 heads"),
        ({"q": torch.zeros(5, 4, 8).half()}, "q must be float32 like key_cache, got float16"),
        ({"lengths": torch.tensor([3.0, 6.0])}, "lengths must be int64, got float32"),
        ({"lengths": torch.tensor([3])}, r"lengths must have shape \(2,\)"),
        ({"block_table": torch.zeros(2, 2)}, "block_table must be int32, int64, got float32"),
        ({"alibi_slopes": torch.zeros(2)}, r"alibi_slopes must have shape \(4,\) \(one for each head of q\)"),
        ({"window": -1}, "window must be 0 or more, got -1"),
        ({"value_cache": torch.zeros(4, BLOCK, 2, 9)}, r"value_cache must have shape \(4, 4, 2, 8\)"),
        ({"key_cache": torch.zeros(4, BLOCK, 2, 257)}, "with head_dim 1 to 256"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        ops.paged_attention(**batch(**changed))
