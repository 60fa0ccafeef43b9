"""Checkpoints of a pipeline load into any number of stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from staged_model import Trained, batches, make, merged, settings

import ds_core
from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks


def save(folder: str, kind: str, stages: int, **sections: Any) -> Trained:
    """Two steps, and a checkpoint."""
    engine = ds_core.initialize(model=make(kind, stages), config=settings(1, **sections))[0]
    data = batches(engine.get_data_parallel_rank())
    losses = [float(engine.train_batch(data)) for _ in range(2)]
    engine.save_checkpoint(folder)
    run = Trained(engine, losses, [])
    engine.destroy()
    return run


def load(folder: str, kind: str, stages: int, **sections: Any) -> tuple[Trained, Trained]:
    """What was loaded, and a step from there."""
    engine = ds_core.initialize(model=make(kind, stages, base_seed=7), config=settings(1, **sections))[0]
    engine.load_checkpoint(folder)
    loaded = Trained(engine, [], [])
    losses = [float(engine.train_batch(batches(engine.get_data_parallel_rank(), seed=5)))]
    after = Trained(engine, losses, [])
    engine.destroy()
    return loaded, after


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_four_stages_become_two_and_one_to_the_bit(tmp_path: Path, kind: str) -> None:
    folder = str(tmp_path)
    saved = merged(run_ranks(save, 4, folder, kind, 4, pipeline={"schedule": "zb-h1"}))
    states = []
    for stages, sections in ((4, {}), (2, {"pipeline": {"schedule": "zbv"}}), (1, {})):
        found = run_ranks(load, stages, folder, kind, stages, **sections)
        loaded = merged([row[0] for row in found])
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[name], value) for name, value in saved.items())
        states.append((merged([row[1] for row in found]), found[0][1].losses))
    for after, losses in states[1:]:  # a step from there is the same, so optimizer states are, too
        assert losses == states[0][1]
        assert all(torch.equal(after[name], value) for name, value in states[0][0].items())


def test_stages_with_sharded_optimizers_become_one_process_and_back(tmp_path: Path) -> None:
    folder = str(tmp_path)
    saved = merged(run_ranks(save, 4, folder, "tied", 2, zero_optimization={"stage": 2}, bf16={"enabled": True}))
    alone = run_ranks(load, 1, folder, "tied", 1, bf16={"enabled": True})[0]
    assert all(torch.equal(alone[0].parameters[name], value) for name, value in saved.items())
    stages = run_ranks(load, 2, folder, "tied", 2, bf16={"enabled": True}, zero_optimization={"stage": 1})
    assert all(torch.equal(value, alone[1].parameters[name]) for name, value in merged([s[1] for s in stages]).items())
