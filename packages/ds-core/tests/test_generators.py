"""Random generators: their states go through a checkpoint, and ranks that were not there get streams of their own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import ds_core
from ds_core import generators


def draw() -> dict[str, list[float]]:
    """Some numbers of every generator, an odd count of normal ones first so that a spare is left."""
    return {
        "host": torch.rand(3).tolist(),
        "python": [random.gauss(0, 1), random.random()],
        "numpy": [float(np.random.standard_normal()), float(np.random.rand())],
    }


def build():
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    return ds_core.initialize(model=nn.Linear(2, 2), config=config)[0]


@pytest.fixture(autouse=True)
def _restored():
    before = generators.collect(None)
    yield
    for name, state in before.items():
        generators.restore(name, state, None)


def test_every_generator_goes_on_where_it_was(tmp_path):
    engine = build()
    draw()
    random.gauss(0, 1)
    engine.save_checkpoint(tmp_path)
    expected = draw()
    for _ in range(5):
        draw()
    build().load_checkpoint(tmp_path)
    assert draw() == expected


def test_a_generator_that_was_not_saved_begins_a_stream_of_its_own(tmp_path, monkeypatch):
    collect = generators.collect
    monkeypatch.setattr(generators, "collect", lambda given: {"host": collect(given)["host"]})
    build().save_checkpoint(tmp_path)
    monkeypatch.undo()
    build().load_checkpoint(tmp_path)
    first = draw()
    build().load_checkpoint(tmp_path)
    assert draw() == first


def test_seeds_differ_by_rank_and_generator_and_depend_on_the_saved_state():
    states = [torch.Generator().manual_seed(seed).get_state() for seed in (1, 2)]
    seeds = {generators.seed_for(s, name, rank) for s in states for name in ("host", "python") for rank in range(4)}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_configured_seed_begins_every_generator():
    config = {"train_micro_batch_size_per_gpu": 1, "seed": 5}
    drawn = []
    for _ in range(2):
        ds_core.initialize(model=nn.Linear(2, 2), config=config)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
