"""Every served key of ``expert_parallel`` does something: each has a test that sets it and observes the change."""

from __future__ import annotations

import copy

import expert_models
import listed_model
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ds_core
from ds_core.errors import ConfigError
from ds_core.testing import run_ranks

EXPERTS = "model.layers.{}.mlp.experts"


def convert(model: nn.Module, **settings):
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "expert_parallel": {"enabled": True, **settings},
    }
    return ds_core.initialize(model=model, config=config)[0]


def listed(settings: dict, **options):
    """A converted model with lists of experts, and how far its loss is from its own before."""
    model = listed_model.Model(**options)
    x = listed_model.rows(2)
    wanted = model(x).detach()
    engine = convert(model, **{"moe_layer_pattern": r"layers\.\d+$", **settings})
    return engine, abs(float((engine.module(x).detach() - wanted) / wanted))


def is_converted(module: nn.Module) -> bool:
    return "forward" in vars(module)


class Seen(TorchDispatchMode):
    """Names of ops that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_enabled_replaces_the_forward_of_experts():
    model = expert_models.make("mixtral")
    convert(model, enabled=False)
    assert not is_converted(model.get_submodule(EXPERTS.format(0)))
    convert(model)
    assert is_converted(model.get_submodule(EXPERTS.format(0)))


def _mesh(size: int) -> dict[str, int]:
    return convert(expert_models.make("mixtral"), autoep_size=size).mesh.coords()


def test_autoep_size_is_the_axis_of_experts():
    assert [set(coords) for coords in run_ranks(_mesh, 2, 1)] == [{"data"}] * 2
    assert [coords["expert"] for coords in run_ranks(_mesh, 2, 2)] == [0, 1]


def test_autoep_size_must_divide_the_experts():
    with pytest.raises(ConfigError, match=r"must divide the number of experts, got 3 for 4 experts in model.layers.0"):
        from ds_moe.config import ExpertParallel
        from ds_moe.hugging_face.find import find_blocks

        find_blocks(expert_models.make("mixtral"), ExpertParallel(enabled=True, autoep_size=3))


def test_autoep_size_must_divide_the_ranks():
    with pytest.raises(ConfigError, match="expert 2 = 2, which does not divide 1 ranks"):
        convert(expert_models.make("mixtral"), autoep_size=2)


def test_preset_model_takes_its_family_only():
    convert(expert_models.make("qwen2_moe"), preset_model="qwen3_moe")  # the same form, by the same preset
    with pytest.raises(ConfigError, match=r"preset_model is 'olmoe'.* are of family mixtral"):
        convert(expert_models.make("mixtral"), preset_model="olmoe")


def test_a_model_without_experts_is_refused_with_what_was_looked_for():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match=r"Sequential has no mixture-of-experts block .* gate_up_proj"):
        convert(model)


def test_a_list_of_experts_asks_for_a_pattern():
    with pytest.raises(ConfigError, match=r"layers\.0\.experts is a list of 4 experts: set .*moe_layer_pattern"):
        convert(listed_model.Model())


@pytest.mark.parametrize("use_grouped_mm", [True, False])
def test_use_grouped_mm_chooses_the_product(use_grouped_mm):
    engine = convert(expert_models.make("mixtral"), use_grouped_mm=use_grouped_mm)
    tokens = expert_models.tokens(1)
    with Seen() as seen:
        engine.module(input_ids=tokens)
    assert ("ds::grouped_matmul" in seen.names) == use_grouped_mm


def test_moe_layer_pattern_chooses_blocks():
    model = expert_models.make("mixtral")
    convert(model, moe_layer_pattern=r"layers\.1\.")
    assert [is_converted(model.get_submodule(EXPERTS.format(i))) for i in range(2)] == [False, True]


def test_num_experts_attr_must_agree():
    convert(expert_models.make("mixtral"), num_experts_attr="num_local_experts")
    with pytest.raises(ConfigError, match=r"'num_experts_per_tok' says 2 experts, but .* has 4"):
        convert(expert_models.make("mixtral"), num_experts_attr="num_experts_per_tok")
    with pytest.raises(ConfigError, match=r"config does not have; its attributes with experts are .*num_local_experts"):
        convert(expert_models.make("mixtral"), num_experts_attr="experts")


@pytest.mark.parametrize("key", ["top_k", "route_scale", "has_shared_experts", "expert_w2"])
def test_words_about_lists_are_refused_for_stacked_experts(key):
    settings = {"top_k": 1, "route_scale": 2.0, "has_shared_experts": True, "expert_w2": "w2", "expert_w1": "w1"}
    extra = {"expert_w1": "w1"} if key == "expert_w2" else {}
    with pytest.raises(ConfigError, match=f"expert_parallel.* {key}|expert_parallel.{key}"):
        convert(expert_models.make("mixtral"), **{key: settings[key]}, **extra)


def test_load_balance_coeff_moves_the_bias_towards_even_loads():
    model = expert_models.make("deepseek_v3")
    engine = convert(model, load_balance_coeff=0.25)
    gate, experts = model.model.layers[1].mlp.gate, model.model.layers[1].mlp.experts
    loads = torch.zeros(8)
    tokens = expert_models.tokens(2)
    before = gate.e_score_correction_bias.clone()
    loss = engine(input_ids=tokens, labels=tokens).loss
    loads += experts._last_counts
    engine.backward(loss)
    engine.step()
    assert loads.min() < loads.mean() < loads.max()
    assert torch.equal(gate.e_score_correction_bias - before, 0.25 * torch.sign(loads.mean() - loads))


def _bias_after_steps() -> tuple[torch.Tensor, torch.Tensor]:
    engine = convert(expert_models.make("deepseek_v3"), load_balance_coeff=0.5, autoep_size=2)
    layer = engine.module.model.layers[1].mlp
    tokens = expert_models.tokens(4).chunk(2)[engine.mesh.rank("expert")]
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    mine = layer.experts._last_counts.clone()
    engine.step()
    return layer.gate.e_score_correction_bias, mine


def test_load_balance_counts_the_tokens_of_all_ranks():
    (bias, mine), (other_bias, others) = run_ranks(_bias_after_steps, 2)
    loads = (mine + others).double()
    assert torch.equal(bias, other_bias)
    assert torch.equal(bias.double(), 0.5 * torch.sign(loads.mean() - loads))


def test_load_balance_coeff_needs_a_bias_to_move():
    with pytest.raises(ConfigError, match=r"model.layers.0.mlp .MixtralSparseMoeBlock. of MixtralForCausalLM has none"):
        convert(expert_models.make("mixtral"), load_balance_coeff=0.1)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"score_func": "sigmoid"}, {"sigmoid": True}),
        ({"route_norm": False}, {"normed": False}),
        ({"route_scale": 2.5}, {"scale": 2.5}),
        ({"score_apply": "pre"}, {"before": True}),
        ({"num_expert_groups": 2, "num_limited_groups": 1}, {"groups": 2}),
        ({"has_shared_experts": True}, {"shared": True}),
    ],
    ids=str,
)
def test_words_about_a_router_must_be_those_of_its_block(settings, options):
    assert listed(settings, **options)[1] < 1e-6
    if settings and "has_shared_experts" not in settings:
        with pytest.raises(ConfigError, match="gave other values before its experts were replaced"):
            listed({}, **options)
        with pytest.raises(ConfigError, match="gave other values before its experts were replaced"):
            listed(settings)


def test_top_k_and_its_attribute():
    assert listed({"top_k_attr": "choices"})[1] < 1e-6
    assert listed({"top_k": 2, "top_k_attr": "nothing"})[1] < 1e-6
    with pytest.raises(ConfigError, match="gave other values"):
        listed({"top_k": 1})


def test_names_of_router_and_experts():
    names = ("decide", "specialists")
    assert listed({"router_pattern": "decide", "expert_pattern": "special.*"}, names=names)[1] < 1e-6
    with pytest.raises(ConfigError, match=r"no child named 'gate|router', which decides.* are decide, specialists"):
        listed({"expert_pattern": "special.*"}, names=names)


def test_shared_experts_are_found_told_and_left_out():
    assert listed({"shared_experts_pattern": "shared_expert"}, shared=True)[1] < 1e-6
    for settings in ({"has_shared_experts": False}, {"shared_experts_gate_pattern": "none"}):
        with pytest.raises(ConfigError, match="gave other values"):
            listed(settings, shared=True)
    with pytest.raises(ConfigError, match=r"has no child named 'shared_experts.'; its children are gate, experts"):
        listed({"has_shared_experts": True})


def test_expert_w1_w2_w3_make_one_grouped_product_of_a_list():
    named = {"expert_w1": "first", "expert_w2": "second", "expert_w3": "third"}
    for settings, is_grouped in (({}, False), (named, True), ({**named, "use_grouped_mm": False}, False)):
        engine, gap = listed(settings)
        with Seen() as seen:
            engine.module(listed_model.rows(1))
        assert gap < 1e-6 and ("ds::grouped_matmul" in seen.names) == is_grouped
    with pytest.raises(ConfigError, match="has no linear layer 'w1'; its children are first, third, second"):
        listed({"expert_w1": "w1", "expert_w2": "second"})
    with pytest.raises(ConfigError, match="gave other values"):
        listed({"expert_w1": "third", "expert_w2": "second", "expert_w3": "first"})


@pytest.mark.parametrize("options", [{"gives_logits": True}, {"own_choice": True}], ids=str)
def test_routers_that_decide_and_blocks_that_give_logits(options):
    engine, gap = listed({}, **options)
    assert gap < 1e-6
    answer = engine.module.layers[0](listed_model.rows(1))
    assert isinstance(answer, tuple) == ("gives_logits" in options)


def test_gradients_of_a_list_are_its_own():
    model = listed_model.Model(shared=True)
    loop = copy.deepcopy(model)
    x = listed_model.rows(2)
    loop(x).backward()
    engine = convert(model, moe_layer_pattern="layers", expert_w1="first", expert_w2="second", expert_w3="third")
    engine.module(x).backward()
    for (name, wanted), (_, found) in zip(loop.named_parameters(), model.named_parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-5, atol=1e-7), name
