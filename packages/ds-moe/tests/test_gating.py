"""The gates under DeepSpeed's names give dense tables of what `route` decides."""

from __future__ import annotations

import pytest
import torch
from plain_moe import choose

from ds_moe.gating import DenseRouting
from ds_moe.sharded_moe import TopKGate, top1gating, top2gating, topkgating

TOKENS, EXPERTS = 20, 4


def logits() -> torch.Tensor:
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(3)) - 0.4 * torch.arange(EXPERTS)


def tables(found: DenseRouting) -> dict[tuple[int, int], float]:
    """Weights by token and expert; checks that a place of an expert holds one token at most."""
    assert found.dispatch_mask.sum(0).max() <= 1
    assert torch.equal(found.dispatch_mask, found.combine_weights != 0)
    return {(t, e): found.combine_weights[t, e, c].item() for t, e, c in found.dispatch_mask.nonzero().tolist()}


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_tables_hold_the_choices_made_one_by_one(k: int, drop: bool) -> None:
    gates = {
        1: lambda: top1gating(logits(), 1.0, 2, use_rts=False, drop_tokens=drop),
        2: lambda: top2gating(logits(), 1.0, 2, drop, top2_2nd_expert_sampling=False),
        3: lambda: topkgating(logits(), 3, 1.0, 2, drop, drop_policy="position"),
    }
    found, want = gates[k](), choose(logits(), k, minimum=2, drop=drop)
    assert tables(found) == pytest.approx({(t, e): w.item() for t, e, w in want.pairs})
    assert found.exp_counts.tolist() == want.counts
    assert found.l_aux.item() == pytest.approx(want.l_aux.item())
    assert found.combine_weights.shape[2] == (-(-TOKENS * k // EXPERTS) if drop else max(want.counts))


def test_experts_without_room_take_nothing() -> None:
    found = topkgating(logits(), 2, 0.0, 0)
    assert not found.dispatch_mask.any() and found.exp_counts.sum() == 2 * TOKENS


def test_places_are_taken_in_the_order_of_tokens_first_choices_first() -> None:
    found = top2gating(torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]]), 1.0, 1, top2_2nd_expert_sampling=False)
    assert found.dispatch_mask.nonzero().tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 2], [1, 1, 0], [2, 0, 1], [2, 1, 2]]


def test_the_most_probable_tokens_are_kept_or_the_first() -> None:
    given = torch.tensor([[1.0, 0, 0, 0], [3.0, 0, 0, 0], [2.0, 0, 0, 0]])
    by_probability = topkgating(given, 1, 0.0, 1)
    by_position = topkgating(given, 1, 0.0, 1, drop_policy="position")
    assert [found.dispatch_mask[:, 0].flatten().tolist() for found in (by_probability, by_position)] == [
        [False, True, False],
        [True, False, False],
    ]


def test_a_gate_gives_tables_of_what_its_layer_chooses() -> None:
    torch.manual_seed(0)
    gate = TopKGate(8, EXPERTS, k=2, top2_2nd_expert_sampling=False)
    x = torch.randn(TOKENS, 8)
    found, routing = gate(x), gate.route(x)
    assert torch.equal(found.l_aux, routing.l_aux)
    assert sorted(tables(found)) == sorted(
        (t, e) for t, row in enumerate(routing.experts.tolist()) for e in row if e >= 0
    )


def test_a_gate_in_bfloat16_computes_in_float32() -> None:
    torch.manual_seed(0)
    gate = TopKGate(8, EXPERTS).to(torch.bfloat16)
    x = torch.randn(TOKENS, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gate.logits(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, x.float() @ gate.wg.weight.float().t())


def test_a_token_mask_reaches_the_gate() -> None:
    gate = TopKGate(8, EXPERTS)
    used = torch.zeros(TOKENS)
    used[3] = 1
    assert gate(torch.randn(TOKENS, 8), used).dispatch_mask.nonzero()[:, 0].tolist() == [3]
