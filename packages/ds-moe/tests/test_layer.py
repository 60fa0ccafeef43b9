"""`MoE` on one process against a loop over its experts: values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from moe_models import EXPERTS, FEATURES, Ffn
from plain_moe import choose, mixture
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ds_core.errors import ConfigError
from ds_moe import Experts, GatedExperts, MlpExperts, MoE
from ds_moe.errors import MoeConfigError

TOKENS = (6, 5)

Plain = Sequence[Callable[[torch.Tensor], torch.Tensor]]


def inputs() -> torch.Tensor:
    return torch.randn(*TOKENS, FEATURES, generator=torch.Generator().manual_seed(3)).requires_grad_()


def made(**settings: Any) -> MoE:
    torch.manual_seed(0)
    return MoE(FEATURES, Ffn, EXPERTS, **{"top2_2nd_expert_sampling": False, "min_capacity": 1, **settings})


def by_loop(layer: MoE, x: torch.Tensor, experts: Plain, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Output, loss and pairs dropped of a loop over experts."""
    flat = x.reshape(-1, FEATURES)
    policy = layer.gate.policy
    factor = policy.capacity_factor if layer.training else policy.eval_capacity_factor
    given = {"factor": factor, "minimum": policy.min_capacity, "drop": policy.drop_tokens, **settings}
    chosen = choose(flat @ layer.gate.wg.weight.t(), policy.k, **given)
    return mixture(flat, chosen, experts).view(x.shape), chosen.l_aux, chosen.dropped


def gradients(layer: nn.Module, x: torch.Tensor, y: torch.Tensor, l_aux: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss of output and auxiliary loss, by name; zeros for none."""
    layer.zero_grad()
    x.grad = None
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(4))
    ((y * dy).sum() + l_aux).backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in layer.named_parameters()}
    return {"x": x.grad.clone(), **found}


def assert_same(layer: MoE, x: torch.Tensor, want: tuple[torch.Tensor, torch.Tensor, int], seed: int = 5) -> None:
    torch.manual_seed(seed)
    got = layer(x)
    torch.testing.assert_close(got.output, want[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.l_aux, want[1], rtol=1e-6, atol=0)
    found = gradients(layer, x, got.output, got.l_aux)
    for name, gradient in gradients(layer, x, want[0], want[1]).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("drop", [True, False])
def test_it_is_a_loop_over_experts(k: int, drop: bool) -> None:
    layer, x = made(k=k, drop_tokens=drop, use_rts=False, capacity_factor=0.8), inputs()
    want = by_loop(layer, x, list(layer.experts), by_probability=k == 3)
    assert (want[2] > 0) == drop
    assert_same(layer, x, want)


def test_values_are_those_of_a_loop_to_the_bit() -> None:
    layer, x = made(k=2, drop_tokens=False), inputs()
    assert torch.equal(layer(x).output, by_loop(layer, x, list(layer.experts))[0])


def test_a_random_choice_of_tokens_is_that_of_a_loop_with_the_same_draws() -> None:
    layer, x = made(capacity_factor=0.5), inputs()
    torch.manual_seed(5)
    want = by_loop(layer, x, list(layer.experts), priority=torch.rand(30))
    assert want[2] > 0
    assert_same(layer, x, want)


def test_evaluation_has_a_capacity_of_its_own() -> None:
    layer, x = made(eval_capacity_factor=0.3).eval(), inputs()
    want = by_loop(layer, x, list(layer.experts))
    assert want[2] > by_loop(layer.train(), x, list(layer.experts))[2]
    assert_same(layer.eval(), x, want)


def test_tokens_that_are_not_used_pass_no_expert() -> None:
    layer, x = made(use_rts=False), inputs()
    used = torch.ones(TOKENS)
    used[:, 2] = 0
    got = layer(x, used)
    assert not got.output[:, 2].any() and got.output[:, 1].any()
    assert got.exp_counts.sum() == 24


def test_a_residual_expert_and_the_others_are_added_by_learned_shares() -> None:
    layer, x = made(k=2, use_residual=True), inputs()
    assert layer.mlp is not None and layer.coefficient is not None
    y, l_aux, dropped = by_loop(layer, x, list(layer.experts))
    share = layer.coefficient(x).softmax(-1)
    assert_same(layer, x, (y * share[..., :1] + layer.mlp(x) * share[..., 1:], l_aux, dropped))


def test_a_shared_expert_is_added() -> None:
    torch.manual_seed(1)
    layer, x = made(k=2, shared_expert=Ffn()), inputs()
    assert layer.shared_expert is not None
    y, l_aux, dropped = by_loop(layer, x, list(layer.experts))
    assert_same(layer, x, (y + layer.shared_expert(x), l_aux, dropped))


def test_stacked_experts_are_a_loop_over_layers_with_their_rows() -> None:
    torch.manual_seed(0)
    stacked, x = MlpExperts(EXPERTS, FEATURES, 24), inputs()
    layer = MoE(FEATURES, stacked, EXPERTS, k=2, top2_2nd_expert_sampling=False, use_residual=True)
    assert layer.mlp is not None and layer.coefficient is not None

    def expert(e: int) -> Callable[[torch.Tensor], torch.Tensor]:
        w1, b1, w2, b2 = stacked.w1[e], stacked.b1[e], stacked.w2[e], stacked.b2[e]
        return lambda rows: nn.functional.gelu(rows @ w1.t() + b1) @ w2.t() + b2

    y, l_aux, dropped = by_loop(layer, x, [expert(e) for e in range(EXPERTS)])
    share = layer.coefficient(x).softmax(-1)
    alone = nn.functional.gelu(x @ layer.mlp.w1[0].t() + layer.mlp.b1[0]) @ layer.mlp.w2[0].t() + layer.mlp.b2[0]
    assert_same(layer, x, (y * share[..., :1] + alone * share[..., 1:], l_aux, dropped))


def test_gated_experts_are_a_loop_over_gated_layers() -> None:
    torch.manual_seed(0)
    stacked, x = GatedExperts(EXPERTS, FEATURES, 24), inputs()
    layer = MoE(FEATURES, stacked, EXPERTS, k=3, drop_tokens=False)

    def expert(e: int) -> Callable[[torch.Tensor], torch.Tensor]:
        gate, up = stacked.gate_up[e].chunk(2)
        return lambda rows: (nn.functional.silu(rows @ gate.t()) * (rows @ up.t())) @ stacked.down[e].t()

    assert_same(layer, x, by_loop(layer, x, [expert(e) for e in range(EXPERTS)]))


@pytest.mark.parametrize("kind", ["modules", "stacked"])
def test_autocast_computes_experts_in_its_dtype_and_gates_in_float32(kind: str) -> None:
    torch.manual_seed(0)
    expert = Ffn if kind == "modules" else MlpExperts(EXPERTS, FEATURES, 24)
    layer, x = MoE(FEATURES, expert, EXPERTS, k=2, top2_2nd_expert_sampling=False), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x)
    exact = layer(x)
    assert got.output.dtype == torch.bfloat16 and torch.equal(got.l_aux, exact.l_aux)
    torch.testing.assert_close(got.output.float(), exact.output, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", ["modules", "stacked"])
def test_work_for_a_token_is_that_of_dense_layers_and_the_gate(kind: str) -> None:
    torch.manual_seed(0)
    hidden, between, k = FEATURES, 32, 2
    expert = Ffn if kind == "modules" else MlpExperts(EXPERTS, hidden, between)
    layer = MoE(hidden, expert, EXPERTS, k=k, drop_tokens=False)
    with FlopCounterMode(display=False) as counter:
        layer(inputs()).output.sum().backward()
    tokens = TOKENS[0] * TOKENS[1]
    dense = 3 * k * 2 * (2 * hidden * between)  # a forward and two products as large backward, two layers
    gate = 3 * 2 * hidden * EXPERTS
    assert counter.get_total_flops() == tokens * (dense + gate)


@pytest.mark.parametrize("kind", ["factory", "stacked"])
def test_an_expert_begins_with_values_that_follow_from_the_seed_and_its_number(kind: str) -> None:
    def weights(count: int) -> list[torch.Tensor]:
        torch.manual_seed(7)
        if kind == "stacked":
            return list(MlpExperts(count, FEATURES, 8).w1.detach())
        return [expert.up.weight for expert in Experts(Ffn, count)]

    few, many = weights(2), weights(4)
    assert not torch.equal(few[0], few[1])
    assert torch.equal(few[0], many[0]) and torch.equal(few[1], many[1])


def test_a_module_is_copied_so_that_experts_begin_alike() -> None:
    expert = Ffn()
    layer = MoE(FEATURES, expert, 2)
    one, other = layer.experts
    assert torch.equal(one.up.weight, expert.up.weight) and one.up.weight is not other.up.weight
    assert torch.equal(one.up.weight, other.up.weight)


def test_an_expert_may_return_its_bias_apart() -> None:
    class Apart(Ffn):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), self.down.bias

    assert MoE(FEATURES, Apart(), 2, use_residual=True)(inputs()).output.shape == (*TOKENS, FEATURES)


def test_an_expert_without_tokens_has_a_gradient_of_zeros() -> None:
    layer = made()
    with torch.no_grad():
        layer.gate.wg.weight[1:] = 0.0
    layer(inputs().abs() + 10 * layer.gate.wg.weight[0].sign()).output.sum().backward()
    assert all(not p.grad.any() for p in layer.experts.get_submodule("3").parameters())
    assert layer.experts.get_submodule("0").up.weight.grad.any()


def test_what_is_not_served_is_refused_or_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="needs ds-tensor"):
        MoE(8, Ffn, 2, enable_expert_tensor_parallelism=True)
    with pytest.raises(MoeConfigError, match="num_experts is 4, and expert is a MlpExperts of 2"):
        MoE(8, MlpExperts(2, 8, 8), 4)
    with pytest.raises(MoeConfigError, match="k must be at most num_experts"):
        MoE(8, Ffn, 2, k=3)
    with pytest.raises(MoeConfigError, match="num_expert_groups must divide num_experts"):
        MoE(8, Ffn, 4, num_expert_groups=3)
    with pytest.raises(MoeConfigError, match="the callable returned int"):
        MoE(8, lambda: 3, 2)  # type: ignore[arg-type, return-value]
    MoE(8, Ffn, 2, use_tutel=True)
    assert "use_tutel has no effect" in caplog.text
