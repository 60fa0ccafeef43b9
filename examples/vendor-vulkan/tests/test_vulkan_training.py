from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training import advance, by_engines, by_plain_torch, differing, make, on_ranks, weights_of

HOST: dict[str, Any] = {"device": "cpu"}


@pytest.mark.parametrize("world", [1, 2])
def test_every_stage_trains_as_plain_torch_on_the_host(world: int) -> None:
    """On two ranks the collectives are core's, staged in host memory."""
    stages = [{"stage": stage} for stage in (0, 1, 2, 3)]
    for ranks in on_ranks(by_engines, world, "vulkan", stages)[:1]:
        for run in ranks:
            assert differing(run, by_plain_torch(world)) == []


def test_optimizer_states_and_parameters_are_offloaded_to_the_host_and_to_files(tmp_path: Path) -> None:
    files = {"device": "nvme", "nvme_path": str(tmp_path)}
    zeros = [{"stage": 1, "offload_optimizer": {**HOST, "ratio": 0.5}}]
    zeros += [{"stage": 3, "offload_optimizer": place, "offload_param": place} for place in (HOST, files)]
    for run in on_ranks(by_engines, 1, "vulkan", zeros)[0]:
        assert differing(run, by_plain_torch()) == []


def states_moved() -> tuple[int, int, int]:
    """Bytes in use before, while states are on the host, and after they came back; trains on."""
    engine = make("vulkan", {"stage": 1}, hidden=5000)
    advance(engine, 1)
    held = [engine.accelerator.memory().allocated_bytes]
    engine.offload_states()
    held.append(engine.accelerator.memory().allocated_bytes)
    engine.reload_states()
    held.append(engine.accelerator.memory().allocated_bytes)
    assert all(torch.isfinite(weight).all() for weight in weights_of(engine).values())
    advance(engine, 1)
    engine.destroy()
    return held[0], held[1], held[2]


def test_states_leave_the_device_and_come_back() -> None:
    ((before, away, after),) = on_ranks(states_moved, 1)
    assert away < before / 2
    assert after == before


def resumed(folder: str, first: str, then: str) -> Any:
    from ds_core import comm
    from ds_core.accelerator import select

    comm.init_distributed(accelerator=select("vulkan"))  # a group that both devices can use
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


@pytest.mark.parametrize(("first", "then"), [("vulkan", "cpu"), ("cpu", "vulkan")])
def test_a_checkpoint_goes_from_one_device_to_the_other(tmp_path: Path, first: str, then: str) -> None:
    for run in on_ranks(resumed, 2, str(tmp_path), first, then)[:1]:
        assert differing(run, by_plain_torch(2)) == []
