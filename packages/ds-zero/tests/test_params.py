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


def test_one_rank_describes_its_parameters_too():
    assert run_ranks(_one, 1) == [("AVAILABLE", 30)]


def _one() -> tuple:
    with Init():
        layer = nn.Linear(6, 5)
    return layer.weight.ds_status.name, layer.weight.ds_numel
