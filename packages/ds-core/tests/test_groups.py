"""Groups of the mesh by the names that scripts written for DeepSpeed and Megatron use."""

from __future__ import annotations

import pytest
from torch import nn

import ds_core
from ds_core import comm, groups
from ds_core.errors import ConfigError
from ds_core.mesh import AxisRequest, Mesh, plan
from ds_core.testing import run_ranks


def _of_an_engine() -> tuple:
    before = (groups.get_data_parallel_world_size(), groups.get_data_parallel_rank())
    config = {"train_batch_size": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine, *_ = ds_core.initialize(model=nn.Linear(2, 2), config=config)
    inside = (
        groups.get_data_parallel_world_size(),
        groups.get_data_parallel_rank(),
        comm.get_world_size(groups.get_data_parallel_group()),
        groups.get_model_parallel_world_size(),
        groups.get_sequence_parallel_world_size(),
        comm.get_world_size(groups.get_tensor_model_parallel_group()),
        groups.get_expert_data_parallel_world_size(),
        groups.get_broadcast_src_rank(),
    )
    engine.destroy()
    return before, inside


@pytest.mark.ranks
def test_groups_of_the_last_engine_and_of_all_ranks_before_it():
    assert run_ranks(_of_an_engine, 2) == [((2, rank), (2, rank, 2, 1, 1, 1, 2, 0)) for rank in range(2)]


def _of_a_mesh() -> dict:
    mesh = Mesh(plan([AxisRequest("expert", 2, 300, splits_batch=True), AxisRequest("tensor", 2, 500)], 4), "cpu")
    groups.use(mesh)
    return {
        "data": (groups.get_data_parallel_rank(), groups.get_data_parallel_world_size()),
        "tensor": (groups.get_tensor_model_parallel_rank(), groups.get_tensor_model_parallel_src_rank()),
        "model": comm.get_all_ranks_from_group(groups.get_model_parallel_group()),
        "expert": comm.get_all_ranks_from_group(groups.get_expert_parallel_group("ep_size_2")),
        "same experts": groups.get_expert_data_parallel_world_size(),
        "most": groups.get_max_expert_size(),
        "first": (groups.get_broadcast_src_rank(), groups.get_expert_broadcast_src_rank()),
    }


@pytest.mark.ranks
def test_expert_and_tensor_axes():
    ranks = run_ranks(_of_a_mesh, 4)
    assert [rank["data"] for rank in ranks] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [rank["tensor"] for rank in ranks] == [(0, 0), (1, 0), (0, 2), (1, 2)]
    assert [rank["model"] for rank in ranks] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank["expert"] for rank in ranks] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert {(rank["same experts"], rank["most"]) for rank in ranks} == {(1, 2)}
    assert [rank["first"] for rank in ranks] == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_a_mesh_is_not_handed_in():
    groups.initialize()
    for call in (
        lambda: groups.initialize(ep_size=2),
        lambda: groups.set_tensor_model_parallel_rank(1),
        lambda: groups.set_tensor_model_parallel_world_size(2),
    ):
        with pytest.raises(ConfigError, match="planned from the config"):
            call()
