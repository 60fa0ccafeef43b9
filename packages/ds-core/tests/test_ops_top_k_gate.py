"""Gates against formulas of the papers in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("renormalize", [False, True])
def test_softmax_gates_are_torchs_softmax_and_topk(dtype: torch.dtype, renormalize: bool) -> None:
    logits = (torch.randperm(40 * 16, generator=torch.Generator().manual_seed(0)).view(40, 16) % 251 / 8).to(dtype)
    gate = ops.top_k_gate(logits, 3, renormalize=renormalize)
    scores = logits.double().softmax(-1)
    weights, _ = scores.topk(3)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    assert gate.weights.dtype == gate.scores.dtype == torch.float32
    torch.testing.assert_close(gate.scores.double(), scores, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(gate.weights.double(), weights, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(
        gate.scores.gather(1, gate.experts) / gate.weights,
        gate.scores.gather(1, gate.experts[:, :1]).expand(40, 3) / gate.weights[:, :1],
    )


def test_renormalized_softmax_is_the_softmax_of_the_chosen_logits() -> None:
    logits = normal(30, 8)
    gate = ops.top_k_gate(logits, 2, renormalize=True)
    best, experts = logits.topk(2)
    assert torch.equal(gate.experts, experts)
    torch.testing.assert_close(gate.weights, best.softmax(-1))


def test_equal_experts_are_taken_from_the_lowest_number() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 1.0, 5.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    assert ops.top_k_gate(logits, 4).experts.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    grouped = ops.top_k_gate(torch.zeros(1, 6), 2, groups=3, groups_kept=2, group_score="top2")
    assert grouped.experts.tolist() == [[0, 1]]


def deepseek_v3(logits: torch.Tensor, bias: torch.Tensor, k: int, groups: int, kept: int) -> tuple[Any, Any]:
    """One token at a time: sigmoid scores, groups by their two best with the bias, weights without it."""
    weights, experts = [], []
    for row in logits.double():
        score = row.sigmoid()
        biased = (score + bias.double()).view(groups, -1)
        by_group = sorted(range(groups), key=lambda g: -float(biased[g].sort(descending=True).values[:2].sum()))[:kept]
        size = biased.shape[1]
        allowed = [g * size + i for g in by_group for i in range(size)]
        chosen = sorted(allowed, key=lambda e: -float(biased.view(-1)[e]))[:k]
        weights.append(score[chosen] / score[chosen].sum() * 2.5)
        experts.append(chosen)
    return torch.stack(weights), torch.tensor(experts)


def test_groups_and_bias_as_in_deepseek_v3() -> None:
    logits, bias = normal(50, 64), normal(64, seed=1) / 4
    gate = ops.top_k_gate(
        logits, 6, score="sigmoid", renormalize=True, bias=bias, groups=8, groups_kept=3, group_score="top2", scale=2.5
    )
    weights, experts = deepseek_v3(logits, bias, 6, 8, 3)
    assert torch.equal(gate.experts, experts)
    torch.testing.assert_close(gate.weights.double(), weights, rtol=1e-5, atol=1e-7)


def test_groups_as_in_deepseek_v2() -> None:
    logits = normal(50, 32)
    gate = ops.top_k_gate(logits, 4, groups=8, groups_kept=3, scale=16.0)
    scores = logits.double().softmax(-1)
    best = scores.view(50, 8, 4).amax(-1).topk(3).indices
    mask = torch.zeros(50, 8).scatter(1, best, 1).repeat_interleave(4, 1).bool()
    weights, experts = scores.masked_fill(~mask, 0).topk(4)
    assert torch.equal(gate.experts, experts)
    torch.testing.assert_close(gate.weights.double(), weights * 16, rtol=1e-5, atol=1e-7)


def test_a_bias_moves_the_choice_and_not_the_weights() -> None:
    logits, bias = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0.0, 0.0, 5.0])
    gate = ops.top_k_gate(logits, 2, bias=bias)
    assert gate.experts.tolist() == [[2, 0]]
    torch.testing.assert_close(gate.weights, logits.softmax(-1)[:, [2, 0]])


def test_not_a_number_is_below_every_number_and_what_is_out_stays_out() -> None:
    nan = float("nan")
    logits = torch.tensor([[nan, nan, 1.0, nan], [nan, nan, nan, nan], [-float("inf"), 0.0, nan, 1.0]])
    gate = ops.top_k_gate(logits, 2, groups=2, groups_kept=1, score="sigmoid")
    assert gate.experts.tolist() == [[2, 3], [0, 1], [3, 2]]


def gradient(weights: torch.Tensor, scores: torch.Tensor, logits: torch.Tensor, balance: bool) -> torch.Tensor:
    """Of a loss that uses the weights, and with `balance` the mean score of each expert."""
    factor = normal(*weights.shape, seed=3).to(weights)
    loss = (weights * factor).sum()
    if balance:
        loss = loss + (scores.mean(0) * normal(scores.shape[1], seed=4).to(scores)).sum()
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("balance", [False, True])
def test_gradients_are_those_of_torch_in_double_precision(score: str, renormalize: bool, balance: bool) -> None:
    logits = normal(20, 12).requires_grad_()
    gate = ops.top_k_gate(logits, 4, score=score, renormalize=renormalize, scale=1.5)
    exact = logits.detach().double().requires_grad_()
    scores = exact.softmax(-1) if score == "softmax" else exact.sigmoid()
    weights = scores.gather(1, gate.experts)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    want = gradient(weights * 1.5, scores, exact, balance)
    got = gradient(gate.weights, gate.scores, logits, balance)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_a_loss_of_scores_alone_has_a_gradient() -> None:
    logits = normal(5, 4).requires_grad_()
    gate = ops.top_k_gate(logits, 2)
    (got,) = torch.autograd.grad(gate.scores[:, 1].sum(), logits)
    (want,) = torch.autograd.grad(logits.softmax(-1)[:, 1].sum(), logits)
    torch.testing.assert_close(got, want)
    assert not gate.experts.requires_grad


def test_the_balancing_loss_of_switch_transformers() -> None:
    logits = normal(64, 8).requires_grad_()
    gate = ops.top_k_gate(logits, 1)
    counts = ops.expert_permutation(gate.experts, 8).counts
    loss = 8 * (counts / 64 * gate.scores.mean(0)).sum()
    one_hot = torch.nn.functional.one_hot(logits.argmax(-1), 8).float()
    want = 8 * (one_hot.mean(0) * logits.softmax(-1).mean(0)).sum()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (loss, want)))


def test_compiled_as_one_graph() -> None:
    logits = normal(10, 8)

    def route(logits: torch.Tensor) -> torch.Tensor:
        gate = ops.top_k_gate(logits, 2, renormalize=True)
        return gate.weights * ops.expert_permutation(gate.experts, 8).places

    assert torch.equal(torch.compile(route, fullgraph=True, backend="aot_eager")(logits), route(logits))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(8)}, r"logits must be \[tokens, experts\] with 1 to 8192 experts, got shape \(8,\)"),
        ({"logits": torch.zeros(2, 0)}, r"with 1 to 8192 experts, got shape \(2, 0\)"),
        ({"logits": torch.zeros(2, 8, dtype=torch.int64)}, "logits must be float32, bfloat16, float16, got int64"),
        ({"k": 9}, r"k must be from 1 to 8 \(experts to choose from\), got 9"),
        ({"k": 5, "groups": 4, "groups_kept": 2}, r"k must be from 1 to 4 \(experts to choose from\), got 5"),
        ({"score": "tanh"}, "score must be softmax or sigmoid, got 'tanh'"),
        ({"group_score": "mean"}, "group_score must be max or top2, got 'mean'"),
        ({"groups": 3}, r"groups must be from 1 to 64 and divide the number of experts \(8\), got 3"),
        ({"groups": 2, "groups_kept": 3}, r"groups_kept must be from 1 to groups \(2\), got 3"),
        ({"groups": 8, "groups_kept": 8, "group_score": "top2"}, "top2 needs groups of 2 experts or more, got 1"),
        ({"bias": torch.zeros(7)}, r"bias must have shape \(8,\) \(one value an expert\), got \(7,\)"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, "bias must be float32, got float16"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        ops.top_k_gate(**{"logits": torch.zeros(2, 8), "k": 2, **change})
