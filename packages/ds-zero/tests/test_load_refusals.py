"""A checkpoint that does not fit is refused on all ranks, and the engine is what it was: see `Part.check_state`."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

import ds_core
from ds_core import generators
from ds_core.errors import CheckpointError
from ds_core.testing import run_ranks


class Net(nn.Module):
    """Two layers; `changed` says how it differs from the one that was saved."""

    def __init__(self, changed: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 6 if changed == "shape" else 7)
        self.norm = nn.BatchNorm1d(self.first.out_features)
        last = nn.Linear(self.first.out_features, 3)
        self.add_module("renamed" if changed == "renamed" else "last", last)
        if changed == "more":
            self.more = nn.Linear(3, 3)
        if changed == "less":
            self.norm = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x = module(x)
        return x.square().mean()


def build(stage: int, changed: str = "", **more):
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    model = Net(changed)
    groups = None
    if changed == "groups":
        biased = [p for n, p in model.named_parameters() if n.endswith("bias")]
        groups = [{"params": [p for p in model.parameters() if not any(p is b for b in biased)]}, {"params": biased}]
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "train_batch_size": 2 * ranks,
        "optimizer": {"type": "SGD" if changed == "optimizer" else "AdamW", "params": {"lr": 1e-2}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}},
        "zero_optimization": {"stage": stage},
        "seed": 3,
        **more,
    }
    if changed == "schedule":
        config["scheduler"] = {"type": "WarmupDecayLR", "params": {"total_num_steps": 9, "warmup_num_steps": 5}}
    rows = TensorDataset(torch.randn(60 if changed == "data" else 40, 5, generator=torch.Generator().manual_seed(1)))
    return ds_core.initialize(model=model, model_parameters=groups, training_data=rows, config=config)[0]


def train(engine, steps: int = 2) -> None:
    for _ in range(steps):
        engine.train_batch()


def fingerprint(engine) -> dict[str, str]:
    """Every bit a load might change, of this rank, hashed part by part."""
    found: dict[str, object] = {"counters": engine.counters(), "groups": repr(engine.get_lr())}
    for part in engine.parts:
        if part.name in ("accumulation", "position"):
            continue
        plan = part.state_plan()
        for fragment in plan.fragments if plan is not None else ():
            found[f"{fragment.key} {fragment.start}"] = fragment.values().detach().cpu().clone()
        found[part.name] = repr(plan.values) if plan is not None else ""
    found |= {f"random {name}": state for name, state in generators.collect(None).items()}
    found["loader"] = repr(engine.training_dataloader.state_dict())
    data = {name: _bytes(value) for name, value in found.items()}
    return {name: hashlib.sha256(value).hexdigest() for name, value in data.items()}


def _bytes(value: object) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return repr(value).encode()


def save(folder: str, stage: int) -> None:
    engine = build(stage)
    train(engine)
    random.random()
    engine.save_checkpoint(folder, tag="t")


def refused(folder: str, stage: int, changed: str) -> tuple[str, bool]:
    """What a load says, and whether it left everything alone."""
    engine = build(stage, changed)
    train(engine, 1)
    before = fingerprint(engine)
    try:
        engine.load_checkpoint(folder, tag="t")
    except CheckpointError as error:
        return str(error), fingerprint(engine) == before
    return "loaded", False


WORDS = {
    "shape": "'first.weight' has shape (6, 5) here and (7, 5) in the checkpoint; shapes also differ of 'first.bias'",
    "renamed": "'renamed.weight' (the checkpoint has 'last.weight')",
    "more": "lacks 2 of the model's 11 parameters and buffers: 'more.weight'",
    "less": "5 parameters and buffers that this model has not: 'norm.",
    "optimizer": "the checkpoint's optimizer is",
    "groups": "has 1 parameter groups, this engine's has 2",
    "schedule": "schedule is WarmupLR, this engine's is WarmupDecayLR",
    "data": "saved with length 40",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("saved"))
    run_ranks(save, 2, folder, 3)
    return folder


@pytest.mark.parametrize("changed", WORDS)
def test_what_does_not_fit_is_refused_and_nothing_is_touched(saved, changed):
    for message, untouched in run_ranks(refused, 2, saved, 1 + 2 * (len(changed) % 2), changed):
        assert WORDS[changed] in message
        assert "nothing was changed" in message
        assert untouched


def one_rank_refuses(folder: str) -> tuple[str, bool]:
    return refused(folder, 3, "data" if dist.get_rank() == 1 else "")


def test_one_rank_that_refuses_keeps_all_from_loading(saved):
    for message, untouched in run_ranks(one_rank_refuses, 2, saved):
        assert "rank 1 could not take this state, and nothing was changed" in message
        assert "saved with length 40" in message
        assert untouched


def half_a_step(folder: str) -> list[str]:
    engine = build(2, train_batch_size=4 * dist.get_world_size())
    train(engine, 1)
    engine.backward(engine(torch.ones(2, 5)))
    engine.step()
    told = []
    try:
        engine.save_checkpoint(folder, tag="half")
    except CheckpointError as error:
        told.append(str(error))
    engine.load_checkpoint(folder, tag="t")
    told.append(str(engine.is_gradient_accumulation_boundary()))
    engine.save_checkpoint(folder, tag="whole")
    return told


def test_half_a_step_is_not_saved_and_forgotten_by_a_load(saved):
    for refusal, is_boundary in run_ranks(half_a_step, 2, saved):
        assert "1 of 2 micro-batches of a step were accumulated" in refusal
        assert is_boundary == "False"


def do_nothing(src, dst) -> None:
    """Loads no weight."""


def while_offloaded(folder: str, more: dict) -> tuple[str, bool]:
    engine = build(3)
    before = fingerprint(engine)
    engine.offload_states()
    try:
        engine.load_checkpoint(folder, tag="t", **more)
    except CheckpointError as error:
        engine.reload_states()
        return str(error), fingerprint(engine) == before
    return "loaded", False


@pytest.mark.parametrize("more", [{}, {"load_module_only": True}, {"custom_load_fn": do_nothing}])
def test_states_that_are_away_are_not_loaded_over(saved, more):
    for message, untouched in run_ranks(while_offloaded, 2, saved, more):
        assert "nothing was changed: engine.load_checkpoint was called while" in message
        assert untouched
