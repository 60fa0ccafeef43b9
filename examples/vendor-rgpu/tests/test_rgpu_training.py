from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import advance, by_engines, by_plain_torch, differing, make, on_ranks, weights_of

HOST: dict[str, Any] = {"device": "cpu"}


@pytest.mark.parametrize("world", [1, 2])
def test_every_stage_trains_as_plain_torch_on_the_host(world: int) -> None:
    """On two ranks the collectives are core's, staged in host memory."""
    stages = [{"stage": stage} for stage in (0, 1, 2, 3)]
    for ranks in on_ranks(by_engines, world, "rgpu", stages)[:1]:
        for run in ranks:
            assert differing(run, by_plain_torch(world)) == []


def test_optimizer_states_and_parameters_are_offloaded_to_the_host_and_to_files(tmp_path: Path) -> None:
    files = {"device": "nvme", "nvme_path": str(tmp_path)}
    zeros = [{"stage": 1, "offload_optimizer": {**HOST, "ratio": 0.5}}]
    zeros += [{"stage": 3, "offload_optimizer": place, "offload_param": place} for place in (HOST, files)]
    for run in on_ranks(by_engines, 1, "rgpu", zeros)[0]:
        assert differing(run, by_plain_torch()) == []


def refusal() -> str:
    from ds_core.errors import EngineError

    engine = make("rgpu", {"stage": 1})
    advance(engine, 1)
    with pytest.raises(EngineError) as refused:
        engine.offload_states()
    engine.destroy()
    return str(refused.value)


def test_moving_states_between_phases_is_refused_with_what_to_do_instead() -> None:
    (said,) = on_ranks(refusal, 1)
    assert "storage aliasing" in said
    assert "zero_optimization.offload_optimizer" in said


def resumed(folder: str, first: str, then: str) -> Any:
    from ds_core import comm
    from ds_core.accelerator import select

    comm.init_distributed(accelerator=select("rgpu"))  # a group that both devices can use
    engine = make(first, {"stage": 3})
    losses = advance(engine, 2)
    engine.save_checkpoint(folder)
    engine.destroy()
    engine = make(then, {"stage": 3})
    engine.load_checkpoint(folder)
    losses += advance(engine, 1)
    weights = weights_of(engine)
    engine.destroy()
    return losses, weights


@pytest.mark.parametrize(("first", "then"), [("rgpu", "cpu"), ("cpu", "rgpu")])
def test_a_checkpoint_goes_from_one_device_to_the_other(tmp_path: Path, first: str, then: str) -> None:
    for run in on_ranks(resumed, 2, str(tmp_path), first, then)[:1]:
        assert differing(run, by_plain_torch(2)) == []
