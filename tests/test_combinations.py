"""Features together: what cannot be is refused, with the names of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_core.config import Facts, load, resolve
from ds_core.errors import ConfigError, ModelError
from ds_core.testing import run_ranks

BATCH = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}


def refusal(**sections: Any) -> str:
    """Why a config of four ranks is refused."""
    with pytest.raises(ConfigError) as caught:
        resolve(load({**BATCH, **sections}), Facts(world_size=4))
    return str(caught.value)


@pytest.mark.parametrize("zero", [{"stage": 3}, {"stage": 3, "offload_param": {"device": "cpu"}}])
def test_stages_of_a_pipeline_and_sharded_parameters(zero: dict[str, Any]) -> None:
    said = refusal(pipeline={"stages": 2}, zero_optimization=zero)
    assert "zero_optimization.stage 3" in said
    assert "pipeline.stages" in said


class Block(torch.nn.Module):
    """Neither layers to divide nor experts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)


def test_an_estimate_refuses_a_model_that_has_no_stages() -> None:
    from ds_zero.estimate import estimate

    with pytest.raises(ModelError, match="Block cannot be divided into stages"):
        estimate(Block(), {**BATCH, "pipeline": {"stages": 2}}, 4)


def test_an_estimate_refuses_ranks_that_share_experts_a_model_does_not_have() -> None:
    from ds_zero.estimate import estimate

    config = {**BATCH, "expert_parallel": {"enabled": True, "autoep_size": 2}}
    with pytest.raises(ConfigError, match="Block has no mixture-of-experts block that can be converted"):
        estimate(Block(), config, 4)


def test_axes_that_do_not_fit_the_ranks_are_all_named() -> None:
    from ds_core.mesh import plan
    from ds_core.plugins import manager

    both = {"pipeline": {"stages": 2}, "expert_parallel": {"enabled": True, "autoep_size": 4}}
    config = resolve(load({**BATCH, **both}), Facts(world_size=4))
    wanted = [request.item for request in manager().call("ds_mesh_axes", config=config, model=torch.nn.Linear(1, 1))]
    with pytest.raises(ConfigError, match=r"pipe 2 x expert 4 = 8"):
        plan(wanted, 4)


def build_half_frozen() -> str:
    import ds_core
    from ds_pipeline import PipelineModule

    layers = [torch.nn.Linear(4, 4) for _ in range(2)]
    layers[1].requires_grad_(False)
    model = PipelineModule(
        layers=layers, num_stages=2, loss_fn=torch.nn.functional.mse_loss, partition_method="uniform"
    )
    with pytest.raises(ModelError) as caught:
        ds_core.initialize(model=model, config=BATCH)
    return str(caught.value)


@pytest.mark.ranks
def test_a_stage_with_nothing_to_train_is_named() -> None:
    for said in run_ranks(build_half_frozen, 2):
        assert said.startswith("ranks [1] ({'pipe': 1, 'data': 0} the first) hold no parameter that is trained")
