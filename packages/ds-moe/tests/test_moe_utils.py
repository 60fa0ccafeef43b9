"""Parameters of experts told from others, and tokens divided over ranks that all have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from moe_models import EXPERTS, FEATURES, Ffn

import ds_core
from ds_core.testing import run_ranks
from ds_moe import MoE
from ds_moe.dispatch import Groups
from ds_moe.errors import MoeConfigError, RoutingError
from ds_moe.experts import Experts
from ds_moe.mappings import drop_tokens, gather_tokens
from ds_moe.sharded_moe import MOELayer, TopKGate
from ds_moe.stacked import MlpExperts
from ds_moe.utils import (
    configure_moe_param_groups,
    has_moe_layers,
    is_moe_param,
    is_moe_param_group,
    split_params_grads_into_shared_and_expert_params,
    split_params_into_different_moe_groups_for_optimizer,
    split_params_into_shared_and_expert_params,
)


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, FEATURES),
        MoE(FEATURES, Ffn, EXPERTS, ep_size=2, use_residual=True),
        MoE(FEATURES, MlpExperts(2, FEATURES, 8), 2),
    )


def test_experts_are_told_from_others(model: torch.nn.Module) -> None:
    named = dict(model.named_parameters())
    found = {name for name, parameter in named.items() if is_moe_param(parameter)}
    assert found == {name for name in named if ".experts." in name} and len(found) == 4 * EXPERTS + 4
    shared, experts = split_params_into_shared_and_expert_params(model.parameters())
    assert len(experts) == len(found) and len(shared) + len(experts) == len(named)
    assert has_moe_layers(model) == (True, EXPERTS) and has_moe_layers(torch.nn.Linear(2, 2)) == (False, 0)


def test_gradients_are_split_without_those_that_are_not_there(model: torch.nn.Module) -> None:
    next(model.parameters()).grad = torch.ones(FEATURES, FEATURES)
    shared, experts = split_params_grads_into_shared_and_expert_params(model.parameters())
    assert len(shared) == 1 and experts == []


def test_optimizer_groups_keep_experts_apart_by_the_ranks_that_share_them(model: torch.nn.Module) -> None:
    groups = configure_moe_param_groups(model.parameters())
    assert [is_moe_param_group(group) for group in groups] == [False, True, True]
    assert [group.get("name") for group in groups] == [None, "ep_size_2", "ep_size_1"]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    given = {"params": list(model.parameters()), "lr": 0.1}
    small = split_params_into_different_moe_groups_for_optimizer(given, max_group_size=1200)
    runs = [group for group in small if group.get("name") == "ep_size_2"]
    assert len(runs) == EXPERTS and all(group["lr"] == 0.1 for group in small)
    assert all(sum(p.numel() for p in group["params"]) <= 1200 for group in runs)


def test_an_engine_takes_such_groups() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), MOELayer(TopKGate(4, 2), Experts(torch.nn.Linear(4, 4), 2)))
    config = {"train_batch_size": 4, "optimizer": {"type": "Adam", "params": {"lr": 0.1}}}
    groups = configure_moe_param_groups(model.parameters())
    engine, *_ = ds_core.initialize(model=model, model_parameters=groups, config=config)
    before = model[1].experts.get_submodule("0").weight.detach().clone()
    engine.backward(engine(torch.randn(4, 4)).square().mean())
    engine.step()
    assert not torch.equal(before, model[1].experts.get_submodule("0").weight)


def test_the_bare_layer_keeps_what_its_gate_decided() -> None:
    torch.manual_seed(0)
    gate, experts = TopKGate(FEATURES, EXPERTS, use_rts=False), Experts(Ffn, EXPERTS)
    layer = MOELayer(gate, experts, "ep_size_1", 1, EXPERTS)
    x = torch.randn(3, 4, FEATURES)
    y = layer(x)
    l_aux, combine, mask, counts = gate(x.flatten(0, 1))
    table = torch.einsum("tec,th->ech", mask.float(), x.flatten(0, 1)).unsqueeze(0)
    made = torch.einsum("tec,ech->th", combine, experts(table).squeeze(0))
    torch.testing.assert_close(y, made.view_as(y))
    assert torch.equal(layer.l_aux, l_aux) and torch.equal(layer.exp_counts, counts)


def test_experts_in_stacked_weights_need_to_know_whose_rows_are_whose() -> None:
    experts = MlpExperts(2, FEATURES, 8)
    with pytest.raises(MoeConfigError, match="rows for 2 experts need groups"):
        experts(torch.randn(3, FEATURES))
    assert experts(torch.randn(3, FEATURES), Groups((3, 0), torch.tensor([0, 3, 3]))).shape == (3, FEATURES)


def divided() -> dict[str, Any]:
    group = dist.group.WORLD
    x = torch.arange(12.0).view(4, 3).requires_grad_()
    mine = drop_tokens(x, group=group)
    (mine * (1 + group.rank())).sum().backward()
    piece = (torch.ones(4, 1) * group.rank()).requires_grad_()
    whole = gather_tokens(piece, 1, group=group)
    (whole * torch.tensor([1.0, 2.0])).sum().backward()
    try:
        drop_tokens(torch.zeros(3, 3), group=group)
    except RoutingError as error:
        return {"mine": mine, "dx": x.grad, "whole": whole, "dpiece": piece.grad, "error": str(error)}
    return {}


def test_tokens_are_divided_and_brought_together_with_their_gradients() -> None:
    found = run_ranks(divided, 2)
    x = torch.arange(12.0).view(4, 3)
    for rank, got in enumerate(found):
        assert torch.equal(got["mine"], x[2 * rank : 2 * rank + 2])
        assert torch.equal(got["dx"], torch.tensor([[1.0], [1], [2], [2]]).expand(4, 3))
        assert torch.equal(got["whole"], torch.tensor([[0.0, 1.0]]).expand(4, 2))
        assert torch.equal(got["dpiece"], torch.full((4, 1), 1.0 + rank))
        assert "does not divide over 2 ranks" in got["error"]


def test_on_one_rank_tokens_stay_as_they_are() -> None:
    x = torch.randn(3, 2)
    assert drop_tokens(x) is x and gather_tokens(x) is x
