"""A stage that fails or dies is named on every rank."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from staged_model import Block, batches, layers, loss_fn, settings

import ds_core
from ds_core import comm
from ds_core.testing import RankError, kill_rank, run_ranks
from ds_pipeline import LayerSpec, PipelineModule, StageError

pytestmark = pytest.mark.ranks


class Fragile(Block):
    """Fails, or kills its process, in its second forward."""

    def __init__(self, rank_to_kill: int | None, healthy: int | None) -> None:
        super().__init__()
        self._rank_to_kill = rank_to_kill
        self._healthy = healthy
        self._calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        if self._calls == 2 and comm.get_rank() != self._healthy:
            if self._rank_to_kill is not None:
                kill_rank(self._rank_to_kill)
            raise ValueError("the layer is broken")
        return super().forward(x)


def with_a_fragile_layer(stages: int, rank_to_kill: int | None, healthy: int | None = None, **pipeline: Any) -> Any:
    """An engine whose model has the layer in the middle of 9; it does no harm on rank `healthy`."""
    specs = layers("plain", 6)
    specs[4] = LayerSpec(Fragile, rank_to_kill, healthy)
    model = PipelineModule(specs, stages, loss_fn=loss_fn, partition_method="type:Block|Fragile")
    return ds_core.initialize(model=model, config=settings(pipeline=pipeline))[0]


def messages(stages: int, in_evaluation: bool = False, **pipeline: Any) -> list[str]:
    """What this rank says of a step that fails, and of one after that."""
    engine = with_a_fragile_layer(stages, None, **pipeline)
    found = []
    for _ in range(2):
        with pytest.raises(StageError) as caught:
            engine.eval_batch(batches()) if in_evaluation else engine.train_batch(batches())
        found.append(str(caught.value))
    return found


def test_a_layer_that_raises_is_named_on_every_rank() -> None:
    first, second, third = run_ranks(messages, 3, 3)
    failed = r"stage 1 \(rank 1\) failed in 1F1: ValueError: the layer is broken"
    waited = r"stage 0 \(rank 0\) stopped in \dB0, waiting for the gradient of micro-batch 0 from stage 1 \(rank 1\): "
    assert re.fullmatch(waited + failed, first[0])
    assert re.fullmatch(failed, second[0])
    assert re.search(
        r"stage 2 \(rank 2\) stopped in 2F1, waiting for the activation of micro-batch 1 .*" + failed, third[0]
    )


def test_a_failed_pipeline_does_not_go_on() -> None:
    for _, again in run_ranks(messages, 2, 2):
        assert again.startswith("this pipeline has failed before and cannot go on")
        assert "the layer is broken" in again


def test_who_waits_for_the_loss_is_told_too() -> None:
    """The first stage has nothing left to do in an evaluation whose last stage fails."""
    for message, _ in run_ranks(messages, 2, 2, True, partition=[0, 1, 9]):
        assert "stage 1 (rank 1) failed in 1F1" in message


def test_every_rank_of_every_pipeline_is_told() -> None:
    """Two pipelines side by side, of which one fails."""
    for message, _ in run_ranks(messages, 4, 2, healthy=3):
        assert "stage 1 (rank 2) failed in 1F1: ValueError: the layer is broken" in message


def dying(stages: int) -> None:
    """A step in which rank 1 dies."""
    with_a_fragile_layer(stages, 1).train_batch(batches())


def test_a_stage_that_dies_is_named_on_the_others() -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(dying, 3, 3, dies=[1])
    assert set(caught.value.failures) == {0, 2}
    for rank, waited in ((0, "the gradient"), (2, "the activation")):
        failure = caught.value.failures[rank]
        assert isinstance(failure.exception, StageError)
        assert "stage 1 (rank 1) is gone" in failure.message
        assert f"waiting for {waited} of micro-batch" in failure.message
