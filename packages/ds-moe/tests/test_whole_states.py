"""``state_dict`` and ``save_pretrained`` of a module whose experts ranks divide: whole tensors, under all names."""

from __future__ import annotations

from pathlib import Path

import listed_model
import pytest
import torch
from expert_models import transformers
from moe_models import Net
from test_hugging_face_checkpoints import listed_engine
from test_hugging_face_training import Case, build, train

import ds_core
from ds_core import comm
from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks

Weights = dict[str, torch.Tensor]


def save_pretrained(folder: str) -> dict[int, Weights | None]:
    """What the engine knows to be the weights, at stages with and without sharded parameters."""
    found = {}
    for stage in (0, 2, 3):
        engine = build(Case("mixtral", 2, stage))
        train(engine, range(1))
        engine.module.save_pretrained(f"{folder}/{stage}", is_main_process=comm.get_rank() == 0)
        found[stage] = engine._consolidated_16bit_state_dict()
        train(engine, range(1, 2))
        engine.destroy()
    return found


def test_save_pretrained_writes_every_expert(tmp_path: Path) -> None:
    found = run_ranks(save_pretrained, 2, str(tmp_path))[0]
    for stage, wanted in found.items():
        assert wanted is not None
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(stage))
        for name, value in model.state_dict().items():
            assert torch.equal(value, wanted[name]), (stage, name)


def states_of_lists() -> list[tuple[Weights, bool]]:
    """State dicts before training of a list of experts, and whether what is loaded arrives where it belongs."""
    found = []
    for stage in (1, 3):
        engine = listed_engine(2, stage)
        state = {name: value.clone() for name, value in engine.module.state_dict().items()}
        changed = {name: value + 1 for name, value in state.items()}
        engine.module.load_state_dict(changed)
        again = engine.module.state_dict()
        found.append((state, all(torch.equal(again[name], value) for name, value in changed.items())))
        assert again.keys() == state.keys()
        engine.destroy()
    return found


def test_a_list_of_experts_is_whole_in_a_state_dict_and_loads_from_one() -> None:
    wanted = listed_model.Model().state_dict()
    for rank in run_ranks(states_of_lists, 2):
        for state, is_loaded in rank:
            assert state.keys() == wanted.keys()
            assert all(torch.equal(state[name], value) for name, value in wanted.items())
            assert is_loaded


def states_of_layers() -> tuple[Weights, Weights, bool, tuple[int, ...]]:
    """Of layers of ours: the model's state, a submodule's alone; and what ``keep_vars`` gives."""
    config = {"train_batch_size": 2, "optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 1}}
    engine = ds_core.initialize(model=Net(2), config=config)[0]
    state = engine.module.state_dict()
    alone = engine.module.stacked.state_dict(prefix="stacked.")
    engine.module.load_state_dict(state)
    kept = engine.module.state_dict(keep_vars=True)["stacked.experts.w1"]
    whole = engine.module_state_dict()
    is_same = whole.keys() == state.keys() and all(torch.equal(whole[name], state[name]) for name in state)
    engine.destroy()
    after = engine.module.state_dict()["stacked.experts.w1"]
    assert kept.shape == after.shape
    return state, alone, is_same, tuple(kept.shape)


def test_layers_of_ours_are_whole_in_a_state_dict_until_the_engine_is_destroyed() -> None:
    model = Net(1)
    wanted = model.state_dict()
    for state, alone, is_same, kept in run_ranks(states_of_layers, 2):
        assert is_same
        assert state.keys() == wanted.keys()
        for name, value in wanted.items():
            assert state[name].shape == value.shape, name
        assert alone == {} or all(torch.equal(value, state[name]) for name, value in alone.items())
        assert kept[0] * 2 == wanted["stacked.experts.w1"].shape[0]
