"""A checkpoint of any number of ranks and stage loads at any other, bit for bit: 16 sources x 16 targets."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import resharding
import torch
import torch.distributed as dist

from ds_core import generators
from ds_core.checkpoint import CheckpointReader
from ds_core.testing import run_ranks

RANKS = (1, 2, 3, 4)
STAGES = (0, 1, 2, 3)
PLACES = list(itertools.product(RANKS, STAGES))


def tag_of(ranks: int, stage: int) -> str:
    return f"ranks{ranks}-stage{stage}"


def make_origin(folder: str) -> None:
    engine = resharding.build(0)
    resharding.train(engine, 3)
    with torch.no_grad():  # what no step changes has to come from the checkpoint too
        for parameter in engine.module.frozen.parameters():
            parameter.add_(1)
        engine.module.seen.add_(1)
    engine.save_checkpoint(folder, tag="origin")


def pass_on(folder: str) -> None:
    """Every stage takes the origin over and saves it again."""
    for stage in STAGES:
        engine = resharding.build(stage)
        engine.load_checkpoint(folder, tag="origin")
        engine.save_checkpoint(folder, tag=tag_of(dist.get_world_size(), stage))
        engine.destroy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    """A folder with the origin and the 16 checkpoints made from it."""
    folder = str(tmp_path_factory.mktemp("reshard"))
    run_ranks(make_origin, 1, folder)
    for ranks in RANKS:
        run_ranks(pass_on, ranks, folder)
    return folder


@pytest.mark.parametrize(("ranks", "stage"), PLACES)
def test_what_every_place_saves_is_the_origin(saved, ranks, stage):
    origin, found = (resharding.tensors(saved, tag) for tag in ("origin", tag_of(ranks, stage)))
    assert {key for key in found if not key.startswith("random/")} == {
        key for key in origin if not key.startswith("random/")
    }
    assert [key for key, value in origin.items() if not resharding.same(value, found[key])] == []
    assert resharding.values(saved, tag_of(ranks, stage)) == resharding.values(saved, "origin")
    assert sum(key.startswith("random/host/") for key in found) == ranks


def take_all(folder: str, stage: int) -> list[str]:
    """Loads each of the 16, over a state that differs in everything, and compares."""
    wrong = []
    engine = resharding.build(stage)
    expected, told = resharding.tensors(folder, "origin"), resharding.values(folder, "origin")
    for ranks, source in PLACES:
        resharding.train(engine, 1)
        engine.load_checkpoint(folder, tag=tag_of(ranks, source))
        wrong += [f"{tag_of(ranks, source)}: {each}" for each in resharding.differences(engine, expected, told)]
        wrong += [f"{tag_of(ranks, source)}: random {each}" for each in wrong_generators(folder, ranks, source)]
    return wrong


def wrong_generators(folder: str, ranks: int, stage: int) -> list[str]:
    """Generators of this rank that neither go on as saved nor begin the stream that is theirs."""
    reader = CheckpointReader(Path(folder) / tag_of(ranks, stage))
    now, rank = generators.collect(None), dist.get_rank()
    if rank < ranks:
        return [name for name, state in now.items() if not torch.equal(reader.full(f"random/{name}/{rank}"), state)]
    seed = generators.seed_for(reader.full("random/host/0"), "host", rank)
    return [] if torch.equal(torch.Generator().manual_seed(seed).get_state(), now["host"]) else ["host"]


@pytest.mark.parametrize(("ranks", "stage"), PLACES)
def test_every_place_takes_what_any_place_saved(saved, ranks, stage):
    for wrong in run_ranks(take_all, ranks, saved, stage):
        assert wrong == []
