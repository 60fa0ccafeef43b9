"""Divided experts in checkpoints, in Hugging Face folders, and in models that were built in shards."""

from __future__ import annotations

from pathlib import Path

import expert_models
import listed_model
import pytest
import torch
from expert_models import transformers
from safetensors.torch import load_file
from test_hugging_face_training import Case, alone, build, share, train

import ds_core
from ds_core import comm
from ds_core.placeholder import is_placeholder
from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks

FAMILIES = ("mixtral", "deepseek_v3")


def _train_and_save(folder: str) -> None:
    for family in FAMILIES:
        engine = build(Case(family, 2, 2))
        train(engine, range(1))
        engine.save_checkpoint(f"{folder}/{family}", tag="one")
        engine.destroy()


def _resume(folder: str, size: int, stage: int, tags: tuple[str, str], step: int) -> dict[str, list[float]]:
    losses = {}
    for family in FAMILIES:
        engine = build(Case(family, size, stage))
        engine.load_checkpoint(f"{folder}/{family}", tag=tags[0])
        losses[family] = train(engine, range(step, step + 1))
        engine.save_checkpoint(f"{folder}/{family}", tag=tags[1])
        engine.destroy()
    return losses


def test_training_goes_on_with_other_numbers_of_ranks_and_of_experts_on_each(tmp_path):
    run_ranks(_train_and_save, 2, str(tmp_path))
    second = run_ranks(_resume, 1, str(tmp_path), 1, 0, ("one", "two"), 1)
    third = run_ranks(_resume, 4, str(tmp_path), 4, 3, ("two", "three"), 2)
    for family in FAMILIES:
        losses, _ = alone(family)
        assert second[0][family] == [pytest.approx(losses[1], rel=1e-6)]
        assert sum(rank[family][0] for rank in third) / 4 == pytest.approx(losses[2], rel=1e-6)


def _export(folder: str, family: str) -> torch.Tensor:
    original = Path(folder, "original")
    model = transformers.AutoModelForCausalLM.from_pretrained(original)
    engine = build(Case(family, 2, 3), model)
    train(engine, range(1))
    engine.export_hf(f"{folder}/exported")
    engine.save_16bit_model(f"{folder}/file")
    engine.eval()
    with torch.no_grad():
        return engine(input_ids=expert_models.tokens(2)).logits


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_folder_of_the_original_is_loaded_and_one_it_loads_is_written(tmp_path, family):
    model = expert_models.make(family)
    names = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "original")
    logits = run_ranks(_export, 2, str(tmp_path), family)[0]
    assert {name: t.shape for name, t in load_file(tmp_path / "file" / "model.safetensors").items()} == names
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    with torch.no_grad():
        found = loaded(input_ids=expert_models.tokens(2)).logits
    assert torch.allclose(found, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))


def _built_in_shards(folder: str) -> list[float]:
    import ds_zero

    with ds_zero.Init():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    experts = model.model.layers[0].mlp.experts
    assert is_placeholder(experts.gate_up_proj.data)
    engine = build(Case("mixtral", 2, 3), model)
    assert tuple(experts.gate_up_proj.shape) == (2, 96, 32)
    return train(engine)


def test_models_built_in_shards_are_divided_from_their_pieces(tmp_path):
    expert_models.make("mixtral").save_pretrained(tmp_path)
    ranks = run_ranks(_built_in_shards, 4, str(tmp_path))
    for step, loss in enumerate(alone("mixtral")[0]):
        assert sum(rank[step] for rank in ranks) / 4 == pytest.approx(loss, rel=1e-6)


def listed_engine(size: int, stage: int, in_shards: bool = False):
    if in_shards:
        import ds_zero

        with ds_zero.Init():
            model = listed_model.Model()
    else:
        model = listed_model.Model()
    settings = {"expert_w1": "first", "expert_w2": "second", "expert_w3": "third"} if stage % 2 else {}
    config = {
        "train_batch_size": 8,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "zero_optimization": {"stage": stage, "param_persistence_threshold": 10},
        "expert_parallel": {
            "enabled": True,
            "autoep_size": size,
            "moe_layer_pattern": r"layers\.\d+$",
            **settings,
        },
    }
    return ds_core.initialize(model=model, config=config)[0]


def _listed_steps(engine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = engine(listed_model.rows(8, step).chunk(comm.get_world_size())[comm.get_rank()])
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    return losses


def _listed(folder: str):
    found = {}
    for size, stage, in_shards in ((2, 0, False), (2, 2, False), (2, 3, False), (2, 3, True), (1, 3, False)):
        engine = listed_engine(size, stage, in_shards)
        names = [name for name, _ in engine.module.named_parameters() if name.startswith("layers.0.experts")]
        losses = _listed_steps(engine, range(2))
        if (size, stage, in_shards) == (2, 3, True):
            engine.save_checkpoint(folder)
            engine.save_16bit_model(f"{folder}/file")
        found[size, stage, in_shards] = (losses, {name.split(".")[3] for name in names})
        engine.destroy()
    return found


def _listed_resumed(folder: str, size: int) -> list[float]:
    engine = listed_engine(size, 1)
    engine.load_checkpoint(folder)
    return _listed_steps(engine, range(2, 3))


def test_a_list_of_experts_is_divided_under_its_own_names(tmp_path):
    model = listed_model.Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wanted = []
    for step in range(3):
        loss = model(listed_model.rows(8, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wanted.append(float(loss.detach()))
    ranks = run_ranks(_listed, 2, str(tmp_path))
    for (size, *_), (losses, numbers) in ranks[1].items():
        assert numbers == ({"2", "3"} if size == 2 else {"0", "1", "2", "3"})
        assert len(losses) == 2
    for case in ranks[0]:
        for step in range(2):
            assert sum(rank[case][0][step] for rank in ranks) / 2 == pytest.approx(wanted[step], rel=1e-6), case
    assert load_file(tmp_path / "file" / "model.safetensors").keys() == model.state_dict().keys()
    for size in (1, 2):
        resumed = run_ranks(_listed_resumed, size, str(tmp_path), size)
        assert sum(rank[0] for rank in resumed) / size == pytest.approx(wanted[2], rel=1e-6)


def _frozen() -> tuple[bool, float]:
    model = expert_models.make("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts.requires_grad_(False)
    before = model.model.layers[0].mlp.experts.down_proj.clone()
    engine = build(Case("mixtral", 2, 3), model)
    losses = train(engine, range(2))
    parameter = engine.module.model.layers[0].mlp.experts.down_proj
    with engine.gathered([parameter]):
        stayed = torch.equal(parameter, before.chunk(2)[comm.get_rank()])
    return stayed, losses[1] - losses[0]


def test_frozen_experts_are_divided_and_stay():
    for stayed, change in run_ranks(_frozen, 2):
        assert stayed and change != 0


def _whole_block() -> list[float]:
    engine = build(Case("mixtral", 2, 3), zero_optimization={"stage": 3, "param_persistence_threshold": 0})
    paths = [unit.path for unit in engine.units]
    assert "model.layers.0.mlp" in paths, paths  # a leaf of ds-zero: router and experts in one gather
    tokens = share(0)
    return [float(engine(input_ids=tokens, labels=tokens).loss.detach())]


def test_blocks_stay_leaves_of_stage_3():
    ranks = run_ranks(_whole_block, 2)
    assert sum(rank[0] for rank in ranks) / 2 == pytest.approx(alone("mixtral")[0][0], rel=1e-6)
