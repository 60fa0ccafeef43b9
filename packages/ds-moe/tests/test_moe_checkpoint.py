"""Checkpoints of experts over ranks: what one number of ranks saved, others load to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from moe_models import Net, batches, loss_of

import ds_core
from ds_core.testing import run_ranks
from ds_moe.gate import TopKGate

RANKS, ROWS = 4, 8
SETTINGS = {"balancing": "bias", "bias_update_rate": 0.01}

Held = dict[str, tuple[torch.Tensor, int]]


def make_engine(ep_size: int, stage: int, ranks: int = RANKS) -> Any:
    config = {
        "train_micro_batch_size_per_gpu": ROWS // ranks,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-2}},
        "zero_optimization": {"stage": stage, "param_persistence_threshold": 8},
    }
    return ds_core.initialize(model=Net(ep_size, **SETTINGS), config=config)[0]


def step(engine: Any, batch: int) -> None:
    axes = engine.mesh.batch_axes
    rank, ranks = engine.mesh.rank(*axes), engine.mesh.size(*axes)
    x, y = batches(4, ROWS)[batch]
    engine.backward(loss_of(engine(x.chunk(ranks)[rank]), y.chunk(ranks)[rank]))
    engine.step()


def held(engine: Any) -> Held:
    """This rank's parameters and biases, and with which expert those that are cut begin."""
    found: Held = {}
    with engine.gathered(list(engine.module.parameters())):
        for name, parameter in engine.module.named_parameters():
            first = engine.mesh.rank("expert") * parameter.shape[0] if name.startswith("stacked.experts.") else 0
            found[name] = parameter.detach().clone(), first
    gates = {name: each for name, each in engine.module.named_modules() if isinstance(each, TopKGate)}
    found.update({f"{name}.bias_steps": (gate.bias_steps.clone(), 0) for name, gate in gates.items()})
    return found


def save(folder: str) -> tuple[Held, Held]:
    """What there is when a checkpoint is saved at ep_size 2, and a step later."""
    engine = make_engine(2, 1)
    step(engine, 0)
    step(engine, 1)
    engine.save_checkpoint(folder, tag="t")
    now = held(engine)
    step(engine, 2)
    later = held(engine)
    engine.destroy()
    return now, later


def resume(ways: list[tuple[int, int]], folder: str, ranks: int = RANKS) -> list[tuple[Held, Held]]:
    found = []
    for ep_size, stage in ways:
        engine = make_engine(ep_size, stage, ranks)
        step(engine, 3)  # so that what is loaded takes the place of something else
        engine.load_checkpoint(folder)
        now = held(engine)
        step(engine, 2)
        found.append((now, held(engine)))
        engine.destroy()
    return found


def whole(ranks: list[Held]) -> dict[str, torch.Tensor]:
    """Each tensor once, pieces put together."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    for rank in ranks:
        for name, (value, first) in rank.items():
            known = found.setdefault(name, {}).setdefault(first, value)
            assert torch.equal(known, value), f"ranks differ in {name}"
    return {name: torch.cat([pieces[at] for at in sorted(pieces)]) for name, pieces in found.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    folder = str(tmp_path_factory.mktemp("saved"))
    ranks = run_ranks(save, RANKS, folder)
    return folder, whole([now for now, _ in ranks]), whole([later for _, later in ranks])


@pytest.mark.parametrize("world", [RANKS, 1])
def test_other_ranks_load_it_to_the_bit_and_go_on(saved: Any, world: int) -> None:
    folder, now, later = saved
    ways = [(1, 0), (2, 3), (4, 2)] if world == RANKS else [(1, 1)]
    ranks = run_ranks(resume, world, ways, folder, world)
    for place in range(len(ways)):
        loaded = whole([rank[place][0] for rank in ranks])
        assert loaded.keys() == now.keys()
        for name, value in now.items():
            assert torch.equal(loaded[name], value), (ways[place], name)
        for name, value in whole([rank[place][1] for rank in ranks]).items():
            torch.testing.assert_close(value, later[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_it_holds_every_expert_under_its_number_and_stacked_ones_whole(saved: Any) -> None:
    from ds_core.checkpoint import CheckpointReader

    folder, now, _ = saved
    reader = CheckpointReader(Path(folder) / "t")
    plain = dict(Net(**SETTINGS).named_parameters())
    for name, parameter in plain.items():
        value = reader.full(f"model/{name}")
        assert value.shape == parameter.shape and torch.equal(value, now[name])
    assert {f"moe.experts.{number}.up.weight" for number in range(4)} <= plain.keys()
    assert now["moe.gate.bias_steps"].any()
