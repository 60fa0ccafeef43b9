"""Recomputation has the gradients of the plain call, and what it cannot do is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ds_core import recompute
from ds_core.errors import ConfigError, EngineError, MissingWheelError


@pytest.fixture(autouse=True)
def unconfigured():
    recompute.reset()
    yield
    recompute.reset()


def gradients(call, seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 5))
    x = torch.randn(4, 5, requires_grad=True)
    torch.manual_seed(seed + 1)
    call(block, x).pow(2).sum().backward()
    return [x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.mark.parametrize("how", [recompute.checkpoint, recompute.non_reentrant_checkpoint])
def test_gradients_are_those_of_the_plain_call_with_dropout(how):
    for found, wanted in zip(gradients(how), gradients(lambda block, x: block(x)), strict=True):
        assert torch.equal(found, wanted)


def test_the_forward_runs_again_in_backward():
    calls = []

    def function(x):
        calls.append(1)
        return x.sin()

    out = recompute.checkpoint(function, torch.ones(3, requires_grad=True))
    assert len(calls) == 1
    out.sum().backward()
    assert len(calls) == 2


def test_what_comes_with_another_wheel_is_refused_by_its_key():
    recompute.configure(None, num_checkpoints=4, partition_activations=False, checkpoint_in_cpu=False, profile=True)
    assert recompute.is_configured()
    with pytest.raises(MissingWheelError, match=r"activation_checkpointing.cpu_checkpointing.*ds-recompute"):
        recompute.configure(checkpoint_in_cpu=True)
    config = {"activation_checkpointing": {"partition_activations": True}}
    with pytest.raises(MissingWheelError, match="partition_activations"):
        recompute.configure(None, deepspeed_config=config)
    recompute.configure(None, deepspeed_config=config, partition_activations=False)
    with pytest.raises(ConfigError, match="must be an object"):
        recompute.configure(None, deepspeed_config={"activation_checkpointing": 3})


def test_streams_of_random_numbers_go_on_where_they_were():
    tracker = recompute.RngTracker()
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    tracker.add("own", 9)
    first = torch.rand(2)
    with tracker.fork("own"):
        inside = torch.rand(2)
    assert torch.equal(torch.cat([first, torch.rand(2)]), wanted)
    with tracker.fork("own"):
        more = torch.rand(2)
    torch.manual_seed(9)
    assert torch.equal(torch.cat([inside, more]), torch.rand(4))
    with pytest.raises(EngineError, match="is there already"):
        tracker.add("own", 10)
    with pytest.raises(EngineError, match="add\\(name, seed\\)"), tracker.fork("nobody's"):
        pass
    kept = tracker.get_states()
    tracker.reset()
    assert tracker.get_states() == {}
    tracker.set_states(kept)
    assert list(tracker.get_states()) == ["own"]


def test_seeding_for_ranks_that_share_a_layer():
    recompute.model_parallel_manual_seed(4)
    with recompute.get_rng_tracker().fork():
        own = torch.rand(1)
    recompute.model_parallel_reconfigure_tp_seed(4)
    with recompute.get_rng_tracker().fork():
        assert torch.equal(torch.rand(1), own)
    assert recompute.CheckpointFunction is torch.utils.checkpoint.CheckpointFunction
