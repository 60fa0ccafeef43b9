"""Experts of Hugging Face models computed by ours give the model's own values and gradients."""

from __future__ import annotations

import copy
import importlib.util
from typing import get_args

import expert_models
import pytest
import torch
from torch import nn

import ds_core
from ds_core.errors import ConfigError
from ds_moe.config import PresetName
from ds_moe.dispatch import Dispatch
from ds_moe.hugging_face.find import Block
from ds_moe.hugging_face.form import StackedForm, form_of
from ds_moe.hugging_face.presets import PRESETS
from ds_moe.hugging_face.stacked import StackedForward

EPS = torch.finfo(torch.float32).eps


def convert(model: nn.Module, **settings) -> nn.Module:
    config = {"train_micro_batch_size_per_gpu": 2, "expert_parallel": {"enabled": True, **settings}}
    return ds_core.initialize(model=model, config=config)[0].module.eval()


def run(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    tokens = expert_models.tokens(2)
    output = model.eval()(input_ids=tokens, labels=tokens)
    output.loss.backward()
    return output.logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def parting(left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference, in units of the largest value's precision."""
    return float((left - right).abs().max() / (right.abs().max() * EPS))


def with_experts(model: nn.Module, implementation: str) -> nn.Module:
    """A copy of `model` that computes experts in one of its own ways: "eager" is a loop."""
    other = copy.deepcopy(model)
    other.set_experts_implementation(implementation)
    return other


@pytest.mark.parametrize("family", expert_models.FAMILIES)
def test_logits_and_gradients_stay(family):
    # Not bit-equal: the loop takes an expert's rows in another order, and products of matrices differ by the place of
    # a row in them in the last bit; and it adds a token's experts by their numbers, not by its choices.
    original = expert_models.make(family)
    logits, gradients = run(with_experts(original, "eager"))
    found_logits, found = run(convert(original))
    assert parting(found_logits, logits) < 16
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert parting(found[name], gradient) < 32, name


def test_values_are_equal_to_the_bit_where_the_order_of_rows_and_sums_is():
    # One choice a token: the loop's rows are in the order of ours. Columns last: both make the same product.
    original = expert_models.make("gpt_oss", num_experts_per_tok=1)
    logits, _ = run(with_experts(original, "eager"))
    assert torch.equal(run(convert(original))[0], logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_as_near_as_its_own_paths_are_to_each_other(dtype):
    original = expert_models.make("qwen3_moe", dtype)
    loop, other = with_experts(original, "eager"), with_experts(original, "grouped_mm")
    logits = run(loop)[0].float()
    own = (run(other)[0].float() - logits).abs().max()
    assert own > 0
    assert (run(convert(original))[0].float() - logits).abs().max() <= 2 * own


def test_autocast_runs_experts_in_its_dtype():
    original = expert_models.make("mixtral")
    kept = copy.deepcopy(original)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = run(kept)
        found, _ = run(convert(original))
    assert (found - logits).abs().max() <= 0.02 * logits.abs().max()
    assert not torch.equal(found, run(expert_models.make("mixtral"))[0])


def test_router_logits_and_their_loss_stay():
    original = expert_models.make("mixtral")
    tokens = expert_models.tokens(2)
    wanted = copy.deepcopy(original)(input_ids=tokens, labels=tokens, output_router_logits=True)
    found = convert(original)(input_ids=tokens, labels=tokens, output_router_logits=True)
    assert len(found.router_logits) == 2
    assert torch.allclose(found.aux_loss, wanted.aux_loss) and torch.allclose(found.loss, wanted.loss)


def test_counts_say_how_often_each_expert_was_chosen():
    model = convert(expert_models.make("mixtral"))
    chosen = []
    gate = model.model.layers[1].mlp.gate
    gate.register_forward_hook(lambda module, args, output: chosen.append(output[2]))
    run(model)
    assert torch.equal(model.model.layers[1].mlp.experts._last_counts, chosen[0].flatten().bincount(minlength=4))


def test_names_and_shapes_of_parameters_stay():
    original = expert_models.make("qwen2_moe")
    wanted = {name: tensor.shape for name, tensor in original.state_dict().items()}
    found = {name: tensor.shape for name, tensor in convert(original).state_dict().items()}
    assert found == wanted


def test_frozen_experts_get_no_gradient():
    model = expert_models.make("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts.requires_grad_(False)
    _, gradients = run(convert(model))
    assert gradients and not any(".experts." in name for name in gradients)


class OddExperts(nn.Module):
    """Experts with a norm at the end, or with something that is not known."""

    def __init__(self, extra: str | None = None) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 6, 5))
        self.down_proj = nn.Parameter(torch.randn(4, 5, 3))
        self.act_fn = nn.SiLU()
        self.post_expert_norm = nn.LayerNorm(5)
        self.has_post_expert_norm = True
        if extra is not None:
            self.register_parameter(extra, nn.Parameter(torch.ones(4)))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        total = torch.zeros_like(hidden_states)
        for token, (chosen, weights) in enumerate(zip(top_k_index, top_k_weights, strict=True)):
            for expert, weight in zip(chosen, weights, strict=True):
                if expert < 4:
                    gate, up = (self.gate_up_proj[expert] @ hidden_states[token]).chunk(2)
                    total[token] += weight * self.post_expert_norm(self.down_proj[expert] @ (self.act_fn(gate) * up))
        return total


def test_a_norm_after_experts_and_tokens_without_an_expert():
    experts = OddExperts()
    form = form_of(experts)
    assert isinstance(form, StackedForm) and form.has_norm
    x, chosen, weights = torch.randn(7, 5), torch.randint(0, 5, (7, 2)), torch.rand(7, 2)  # 4 is no expert
    block = Block("", nn.Identity(), "experts", experts, form, None)
    ours = StackedForward(block, form, Dispatch(None, 4), use_grouped=True)
    assert torch.allclose(ours(x, chosen, weights), experts(x, chosen, weights), atol=1e-5)


def test_experts_with_tensors_nobody_knows_are_refused_by_name():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(5, 4), OddExperts("scale")

    with pytest.raises(ConfigError, match=r"experts \(OddExperts\): it has tensors that are not known: scale"):
        convert(nn.Sequential(Block()))


def test_experts_that_do_more_than_their_tensors_say_are_refused():
    class Doubling(OddExperts):
        def forward(self, hidden_states, top_k_index, top_k_weights):
            return 2 * super().forward(hidden_states, top_k_index, top_k_weights)

    class Block(nn.Module):
        def __init__(self, experts: nn.Module) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(5, 4), experts

    convert(nn.Sequential(Block(OddExperts())))
    with pytest.raises(ConfigError, match=r"the experts of 0 \(Block\) \(Doubling\) gave other values before"):
        convert(nn.Sequential(Block(Doubling())))


def test_presets_are_families_of_transformers():
    assert get_args(PresetName) == tuple(PRESETS)
    for families in PRESETS.values():
        for family in families:
            assert importlib.util.find_spec(f"transformers.models.{family}") is not None, family
