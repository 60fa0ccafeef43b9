"""torch.distributed.checkpoint between engines and FSDP2: the same files serve both, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh

import ds_core
from ds_core.checkpoint import CheckpointReader
from ds_core.checkpoint.dcp import SafetensorsReader, SafetensorsWriter
from ds_core.testing import run_ranks


def make(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 3))


def sharded(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Every layer and the whole under FSDP2, with an optimizer."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = make(seed)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 5)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def full(state: dict) -> dict:
    """Everything a state dict holds, DTensors in full."""
    return {
        name: full(value) if isinstance(value, dict) else value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in state.items()
    }


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    weights, states = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": states}


def save_fsdp2(folder: str) -> dict:
    model, optimizer = sharded(0)
    step(model, optimizer)
    state = state_of(model, optimizer)
    dcp.save(state, storage_writer=SafetensorsWriter(f"{folder}/t"))
    return {name: tensor.clone() for name, tensor in full(state)["model"].items()}


def load_fsdp2(folder: str) -> tuple[dict, dict]:
    model, optimizer = sharded(1)
    step(model, optimizer)
    state = state_of(model, optimizer)
    assert all(isinstance(value, DTensor) for value in state["model"].values())
    dcp.load(state, storage_reader=SafetensorsReader(f"{folder}/t"))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    after = full(state_of(model, optimizer))
    return after["model"], after["optimizer"]["state"]


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_fsdp2_goes_through_our_files_to_any_number_of_ranks(tmp_path, readers):
    saved = run_ranks(save_fsdp2, 2, str(tmp_path))[0]
    reader = CheckpointReader(tmp_path / "t")
    assert {tensor.dtype for tensor in reader.manifest.tensors.values()} == {"F32"}
    for weights, states in run_ranks(load_fsdp2, readers, str(tmp_path)):
        assert same(weights, saved)
        for name, state in states.items():
            key = f"optimizer.state.{name}"
            assert torch.equal(state["exp_avg"], reader.full(f"{key}.exp_avg"))
            assert torch.equal(state["exp_avg_sq"], reader.full(f"{key}.exp_avg_sq"))


def save_engine(folder: str) -> dict:
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.1}},
        "zero_optimization": {"stage": 3, "param_persistence_threshold": 0},
    }
    engine = ds_core.initialize(model=make(0), config=config)[0]
    engine.backward(engine(torch.ones(2, 5)).square().mean())
    engine.step()
    engine.save_checkpoint(folder, tag="t")
    engine.wait_for_checkpoint()
    return {name: tensor.clone() for name, tensor in engine.module_state_dict().items()}


def load_weights(folder: str) -> tuple[dict, dict]:
    """What an engine saved, in FSDP2's DTensors and in plain tensors."""
    model, _ = sharded(1)
    shards = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    dcp.load(shards, storage_reader=SafetensorsReader(f"{folder}/t"))
    plain = {f"model/{name}": torch.zeros_like(tensor) for name, tensor in make(1).state_dict().items()}
    dcp.load(plain, storage_reader=SafetensorsReader(f"{folder}/t"))
    found = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    return found, {name.removeprefix("model/"): tensor for name, tensor in plain.items()}


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_what_a_sharded_engine_saved_loads_into_fsdp2_and_plain_tensors(tmp_path, readers):
    saved = run_ranks(save_engine, 2, str(tmp_path))[0]
    for shards, plain in run_ranks(load_weights, readers, str(tmp_path)):
        assert same(shards, saved)
        assert same(plain, saved)
