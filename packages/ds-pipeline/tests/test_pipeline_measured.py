"""Hugging Face models in stages: layers recomputed in groups, and layers divided by measured times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from staged_hugging_face import batches, make, train_all
from staged_model import Trained, settings

import ds_core
from ds_core.testing import run_ranks
from ds_pipeline import PartitionError

pytestmark = pytest.mark.ranks

FAMILIES = ("llama", "gpt2", "qwen2")


def _cases(interval: int) -> list[Any]:
    """Every family over two micro-batches, with a mask."""
    pipeline = {"stages": 2, "partition": [0, 3, 4], "activation_checkpoint_interval": interval}
    return [(settings(2, pipeline=pipeline), family, True) for family in FAMILIES]


def test_layers_recomputed_together_change_no_number() -> None:
    """Groups of three of the four layers of a rank, and of two in two stages."""
    kept = run_ranks(train_all, 2, _cases(0))
    for interval in (2, 3):
        again = run_ranks(train_all, 2, _cases(interval))
        for run, reference in zip(zip(*again, strict=True), zip(*kept, strict=True), strict=True):
            for found, wanted in zip(run, reference, strict=True):
                assert found.losses == wanted.losses
                assert found.norms == wanted.norms
                assert found.parameters.keys() == wanted.parameters.keys()
                assert all(torch.equal(value, wanted.parameters[name]) for name, value in found.parameters.items())


def runs_of_layers(interval: int) -> list[int]:
    """How often each layer of the first stage runs in a step of one micro-batch."""
    config = settings(1, pipeline={"stages": 2, "partition": [0, 3, 4], "activation_checkpoint_interval": interval})
    model = make("llama")
    counts = [0] * 4
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: counts.__setitem__(index, counts[index] + 1))
    engine = ds_core.initialize(model=model, config=config)[0]
    counts[:] = [0] * 4
    engine.train_batch(batches())
    engine.destroy()
    return counts


def test_every_layer_of_a_group_runs_again_once() -> None:
    assert run_ranks(runs_of_layers, 2, 0) == [[1, 1, 1, 0], [0, 0, 0, 1]]
    assert run_ranks(runs_of_layers, 2, 2) == [[2, 2, 2, 0], [0, 0, 0, 2]]


def train_profiled(family: str) -> tuple[Trained, str, list[tuple[float | None, int | None]]]:
    """Trains with layers divided by measured times; what was measured."""
    config = settings(1, pipeline={"stages": 2, "partition": "profile", "sample_length": 5})
    engine = ds_core.initialize(model=make(family), config=config)[0]
    data = batches()
    losses = [float(engine.train_batch(data)) for _ in range(2)]
    run = Trained(engine, losses, [])
    plan = engine.module.plan
    engine.destroy()
    return run, str(plan), [(layer.ms, layer.bytes_) for layer in plan.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_divided_by_measured_times(family: str) -> None:
    whole = run_ranks(train_all, 1, [(settings(1), family, False)])[0][0]
    found = run_ranks(train_profiled, 2, family)
    assert found[0][1:] == found[1][1:]
    for run, plan, costs in found:
        assert run.losses == whole.losses
        assert "2 stages by profile" in plan
        assert len(costs) == 4
        assert all(ms is not None and ms > 0 and kept is not None and kept > 0 for ms, kept in costs)
        if family != "qwen2":  # its later layers keep the mask of a window, too
            assert costs[1][1] == costs[2][1]
        assert (costs[-1][1] or 0) > (costs[1][1] or 0)  # the head counts with the last


def refused_profile(pipeline: dict[str, Any]) -> str:
    """What initialize says."""
    with pytest.raises(PartitionError) as caught:
        ds_core.initialize(model=make("gpt2"), config=settings(1, pipeline={"stages": 2, **pipeline}))
    return str(caught.value)


def test_a_profile_needs_a_length_the_model_takes() -> None:
    for message in run_ranks(refused_profile, 2, {"partition": "profile"}):
        assert "needs pipeline.sample_length" in message
    for message in run_ranks(refused_profile, 2, {"partition": "profile", "sample_length": 64}):
        assert "x 64 tokens (micro-batch x pipeline.sample_length)" in message
