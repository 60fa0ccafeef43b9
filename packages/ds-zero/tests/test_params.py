"""What sharded parameters say about themselves, and that they say it only while they are sharded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ds_core
from ds_core.testing import run_ranks
from ds_zero import GatheredParameters, Init
from ds_zero.params import ZeroParamStatus

pytestmark = pytest.mark.ranks


def _lives() -> dict:
    with Init():
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    weight: torch.nn.Parameter = model[0].weight
    found = {"init": (weight.ds_numel, tuple(weight.ds_shape), weight.ds_status.name, weight.partition_numel())}
    with GatheredParameters([weight]):
        found["gathered"] = weight.ds_status == ZeroParamStatus.AVAILABLE
    config = {
        "train_batch_size": 2,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 4},
    }
    engine, *_ = ds_core.initialize(model=model, config=config)
    found["engine"] = [
        (weight.ds_status.name, weight.ds_persist),
        (model[1].bias.ds_status.name, model[1].bias.ds_persist),
    ]
    found["ids"] = len({parameter.ds_id for parameter in model.parameters()})
    before = weight.ds_status != ZeroParamStatus.AVAILABLE
    weight.all_gather()
    whole = weight.detach().clone()
    found["all_gather"] = (before, weight.ds_status.name, bool(whole.isnan().any()))
    weight.partition()
    found["partition"] = weight.ds_status.name
    engine.destroy()
    found["destroyed"] = hasattr(weight, "ds_id") or hasattr(weight, "ds_status")
    return found


def test_sharded_parameters_know_their_shape_and_whether_they_are_here():
    for found in run_ranks(_lives, 2):
        assert found == {
            "init": (30, (5, 6), "NOT_AVAILABLE", 15),
            "gathered": True,
            "engine": [("NOT_AVAILABLE", False), ("AVAILABLE", True)],
            "ids": 4,
            "all_gather": (True, "AVAILABLE", False),
            "partition": "NOT_AVAILABLE",
            "destroyed": False,
        }


def _shards(threshold: int) -> dict:
    torch.manual_seed(0)
    values = [torch.randn(5, 6), torch.randn(5)]
    with Init():
        model = nn.Linear(6, 5)
    with GatheredParameters(list(model.parameters())):
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.data.copy_(value)
    weight: torch.nn.Parameter = model.weight
    found = {"init": weight.ds_tensor.clone(), "numel": weight.ds_tensor.ds_numel}
    config = {
        "train_batch_size": 2,
        "optimizer": {"type": "SGD", "params": {"lr": 0.5}},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": threshold},
    }
    engine, *_ = ds_core.initialize(model=model, config=config)
    found["engine"] = [parameter.ds_tensor.clone() for parameter in model.parameters()]
    engine.backward(engine(torch.ones(1, 6)).sum())
    engine.step()
    found["stepped"] = [parameter.ds_tensor.clone() for parameter in model.parameters()]
    with GatheredParameters(list(model.parameters())):
        found["whole"] = [parameter.detach().clone().reshape(-1) for parameter in model.parameters()]
    engine.destroy()
    found["forgotten"] = not hasattr(weight, "ds_tensor")
    return found | {"values": [value.reshape(-1) for value in values]}


@pytest.mark.parametrize("threshold", [0, 100])
def test_a_parameter_shows_this_ranks_shard_as_it_is(threshold):
    rows = run_ranks(_shards, 2, threshold)
    assert torch.equal(torch.cat([row["init"] for row in rows])[:30], rows[0]["values"][0])
    for place, value in enumerate(rows[0]["values"]):
        assert torch.equal(torch.cat([row["engine"][place] for row in rows]), value)
        stepped = torch.cat([row["stepped"][place] for row in rows])
        assert torch.equal(stepped, rows[0]["whole"][place])
        assert not torch.equal(stepped, value)
    assert all(row["forgotten"] and row["numel"] == 15 for row in rows)


def test_one_rank_describes_its_parameters_too():
    assert run_ranks(_one, 1) == [("AVAILABLE", 30)]


def _one() -> tuple:
    with Init():
        layer = nn.Linear(6, 5)
    return layer.weight.ds_status.name, layer.weight.ds_numel


SEEN: list[tuple] = []


class Scored(torch.autograd.Function):
    """A product that asks its weights in backward who they are, as losses that compute logits anew do."""

    @staticmethod
    def forward(ctx, x, *weights):
        ctx.save_for_backward(x, *weights)
        for weight in weights:
            x = x @ weight
        return x

    @staticmethod
    def backward(ctx, grad):
        x, *weights = ctx.saved_tensors
        for weight in weights:
            said = vars(weight)
            SEEN.append((type(weight), said.get("ds_id"), said.get("ds_status"), said.get("ds_shape")))
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (x, *weights)]
            out = leaves[0]
            for weight in leaves[1:]:
                out = out @ weight
        return torch.autograd.grad(out, leaves, grad)


class Scoring(nn.Module):
    """A sharded weight, a frozen one, and one that stays whole, used by a module that does not own them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.rows, self.fixed, self.small = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(2, 6)
        self.fixed.requires_grad_(False)

    def forward(self, x):
        return Scored.apply(self.rows(x), self.rows.weight, self.fixed.weight, self.small.weight)


def _asked(stage: int) -> tuple:
    model = Scoring()
    config = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    config["zero_optimization"] = {"stage": stage, "param_persistence_threshold": 12}
    engine = ds_core.initialize(model=model, config=config)[0]
    SEEN.clear()
    engine.backward(engine(torch.linspace(0, 1, 16).view(2, 8)).square().sum())
    ids = [getattr(layer.weight, "ds_id", None) for layer in (model.rows, model.fixed, model.small)]
    engine.step()
    with GatheredParameters(list(model.parameters())):
        trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    return SEEN, ids, trained


def test_a_parameter_that_a_function_saved_says_in_backward_who_it_is():
    _, _, expected = run_ranks(_asked, 2, 0)[0]
    for seen, ids, trained in run_ranks(_asked, 2, 3):
        for one, own, shape in zip(seen, ids, ((6, 8), (8, 6), (6, 2)), strict=True):
            assert one == (torch.Tensor, own, ZeroParamStatus.AVAILABLE, shape)
        for name, value in trained.items():
            assert torch.equal(value, expected[name]), name
