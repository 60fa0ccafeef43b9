"""Tokens sorted by expert against loops, and a whole mixture of experts there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError


def drawn(tokens: int, k: int, experts: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(k).indices


def by_loops(
    experts: list[list[int]], count: int, capacity: int, multiple: int, fixed: bool, by_slot: bool
) -> tuple[dict[tuple[int, int], int], list[int], list[int]]:
    """Place of each pair that has one, counts, and where experts begin, one pair at a time."""
    pairs = [(t, s) for t, row in enumerate(experts) for s in range(len(row))]
    if by_slot:
        pairs.sort(key=lambda pair: pair[1])
    asked: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for token, slot in pairs:
        if experts[token][slot] >= 0:
            asked[experts[token][slot]].append((token, slot))
    places, offsets = {}, [0]
    for mine in asked:
        kept = mine if capacity < 0 else mine[:capacity]
        places.update({pair: offsets[-1] + rank for rank, pair in enumerate(kept)})
        room = capacity if fixed else len(kept)
        offsets.append(offsets[-1] + -(-room // multiple) * multiple)
    return places, [len(mine) for mine in asked], offsets


@pytest.mark.parametrize(
    ("capacity", "multiple", "fixed"), [(-1, 1, False), (-1, 8, False), (9, 1, False), (9, 4, False), (9, 4, True)]
)
@pytest.mark.parametrize("by_slot", [False, True])
def test_places_are_those_of_loops(capacity: int, multiple: int, fixed: bool, by_slot: bool) -> None:
    experts = drawn(40, 3, 7)
    experts[5, 1] = experts[9, 0] = -1
    found = ops.expert_permutation(
        experts, 7, capacity=capacity, multiple=multiple, fixed=fixed, first_choices_first=by_slot
    )
    places, counts, offsets = by_loops(experts.tolist(), 7, capacity, multiple, fixed, by_slot)
    assert found.counts.tolist() == counts and found.offsets.tolist() == offsets
    want = torch.full((40, 3), -1)
    for pair, place in places.items():
        want[pair] = place
    assert torch.equal(found.places, want)
    back = torch.full_like(found.pairs, -1)
    for (token, slot), place in places.items():
        back[place] = 3 * token + slot
    assert torch.equal(found.pairs, back) and torch.equal(found.tokens, back // 3)
    assert found.tokens.numel() >= offsets[-1]


def test_first_choices_are_placed_before_second_ones() -> None:
    experts = torch.tensor([[0, 1], [1, 0], [0, 1]])
    by_token = ops.expert_permutation(experts, 2, capacity=2).places
    by_slot = ops.expert_permutation(experts, 2, capacity=2, first_choices_first=True).places
    assert by_token.tolist() == [[0, 2], [3, 1], [-1, -1]]
    assert by_slot.tolist() == [[0, 3], [2, -1], [1, -1]]


def test_a_fixed_capacity_is_a_table() -> None:
    found = ops.expert_permutation(torch.tensor([[2], [0], [2], [2]]), 3, capacity=2, fixed=True)
    assert found.tokens.view(3, -1).tolist() == [[1, -1], [-1, -1], [0, 2]]
    assert found.counts.tolist() == [1, 0, 3]


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("experts", [[3] * 20, list(range(20)), [-1] * 20])
def test_the_size_is_enough_for_any_choice(experts: list[int], multiple: int) -> None:
    found = ops.expert_permutation(torch.tensor(experts).unsqueeze(1), 20, multiple=multiple)
    assert found.offsets[-1] <= found.tokens.numel() == 20 * multiple


@pytest.mark.parametrize(("capacity", "multiple"), [(-1, 1), (-1, 8), (6, 4)])
def test_a_mixture_of_experts_there_and_back(capacity: int, multiple: int) -> None:
    """Gate, rows to their experts' places, an expert's product for its rows alone, and weighted sums for each token."""
    tokens, experts, k, dim = 30, 4, 2, 8
    x = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    router = torch.randn(dim, experts, generator=torch.Generator().manual_seed(1)).requires_grad_()
    matrices = torch.randn(experts, dim, dim, generator=torch.Generator().manual_seed(2)).requires_grad_()

    gate = ops.top_k_gate(x @ router, k, renormalize=True)
    found = ops.expert_permutation(gate.experts, experts, capacity=capacity, multiple=multiple)
    rows = ops.combine_rows(x, found.tokens.unsqueeze(1), torch.ones(found.tokens.numel(), 1))
    ends = found.offsets.tolist()
    parts = [rows[ends[e] : ends[e + 1]] @ matrices[e] for e in range(experts)]
    y = ops.combine_rows(torch.cat(parts), found.places, gate.weights)

    scores = (x @ router).softmax(-1)
    chosen = scores.gather(1, gate.experts)
    weights = chosen / chosen.sum(-1, keepdim=True) * (found.places >= 0)
    every = torch.einsum("td,edf->tef", x, matrices)
    want = (every.gather(1, gate.experts.unsqueeze(-1).expand(tokens, k, dim)) * weights.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(y, want)
    dropped = int((found.places < 0).sum())
    assert (dropped > 0) == (capacity > 0) and dropped == int((found.counts - 6).clamp(min=0).sum()) * (capacity > 0)
    inputs = (x, router, matrices)
    for got, right in zip(
        torch.autograd.grad(y.square().sum(), inputs), torch.autograd.grad(want.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_without_padding_rows_are_gathered() -> None:
    x, experts = torch.randn(10, 4), drawn(10, 2, 5)
    found = ops.expert_permutation(experts, 5)
    rows = ops.gather_rows(x, found.tokens)
    assert torch.equal(ops.gather_rows(rows, found.places[:, 1]), x)


@pytest.mark.parametrize("bad", [5, -2, 2**40])
def test_an_expert_that_is_none_is_named(bad: int) -> None:
    experts = drawn(10, 2, 5)
    experts[3, 1] = bad
    with pytest.raises(OpError, match=rf"experts\[3, 1\] is {bad}; allowed: 0 to 4, or -1 for none. 1 values are off"):
        ops.expert_permutation(experts, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": torch.zeros(4, dtype=torch.int64)}, r"experts must be \[tokens, k\], got shape \(4,\)"),
        ({"experts": torch.zeros(4, 2, dtype=torch.int32)}, "experts must be int64, got int32"),
        ({"num_experts": 0}, "num_experts must be from 1 to 8192, got 0"),
        ({"multiple": 0}, "multiple must be 1 or more, got 0"),
        ({"fixed": True}, "fixed needs a capacity of 0 or more, got -1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        ops.expert_permutation(**{"experts": drawn(4, 2, 3), "num_experts": 3, **change})
