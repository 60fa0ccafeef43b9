"""The format as storage of torch.distributed.checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

import ds_core
from ds_core.checkpoint import CheckpointReader
from ds_core.checkpoint.dcp import SafetensorsReader, SafetensorsWriter
from ds_core.testing import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "matrix": torch.randn(7, 5, generator=generator),
        "half": torch.randn(3, 4, 2, generator=generator).bfloat16(),
        "count": torch.tensor(41),
        "empty": torch.zeros(0, 3),
    }


def blank() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in values().items()}


def test_a_state_dict_comes_back_with_its_values_and_objects(tmp_path):
    saved = {"model": values(), "epoch": 3, "names": ["a", "b"], "best": {"loss": 0.5}}
    dcp.save(saved, storage_writer=SafetensorsWriter(tmp_path / "t"), no_dist=True)
    loaded = {"model": blank(), "epoch": 0, "names": ["", ""], "best": {"loss": 0.0}}
    dcp.load(loaded, storage_reader=SafetensorsReader(tmp_path / "t"), no_dist=True)
    assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in values().items())
    assert (loaded["epoch"], loaded["names"], loaded["best"]) == (3, ["a", "b"], {"loss": 0.5})
    assert (tmp_path / "latest").read_text() == "t"
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["manifest.json", "rank-00000.safetensors"]


def test_an_object_that_is_not_json_is_refused_by_name_and_nothing_is_left(tmp_path):
    with pytest.raises(CheckpointException, match=r"thing \(set\) cannot be written as JSON"):
        dcp.save({"thing": {1, 2}}, storage_writer=SafetensorsWriter(tmp_path / "t"), no_dist=True)
    assert not (tmp_path / "t").exists()


def placements() -> dict[str, list]:
    return {"rows": [Shard(0)], "columns": [Shard(1)], "whole": [Replicate()]}


def distributed(make) -> dict[str, DTensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        f"{name}/{kind}": distribute_tensor(make()[name], mesh, where)
        for name in ("matrix", "half")
        for kind, where in placements().items()
    }


def save_sharded(folder: str) -> None:
    dcp.save(distributed(values), storage_writer=SafetensorsWriter(f"{folder}/t"))


def load_sharded(folder: str) -> list[str]:
    found = distributed(blank)
    dcp.load(found, storage_reader=SafetensorsReader(f"{folder}/t"))
    return [
        name for name, tensor in found.items() if not torch.equal(tensor.full_tensor(), values()[name.split("/")[0]])
    ]


@pytest.mark.parametrize(("writers", "readers"), [(2, 3), (3, 2), (3, 1)])
def test_sharded_tensors_reshard_over_ranks_and_dimensions(tmp_path, writers, readers):
    run_ranks(save_sharded, writers, str(tmp_path))
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    assert len(manifest["tensors"]["matrix/columns"]["pieces"]) == writers
    assert len(manifest["tensors"]["matrix/whole"]["pieces"]) == 1
    assert run_ranks(load_sharded, readers, str(tmp_path)) == [[]] * readers


def train_and_save(folder: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.1}},
    }
    engine = ds_core.initialize(model=model, config=config)[0]
    engine.backward(engine(torch.ones(2, 5)).square().mean())
    engine.step()
    engine.save_checkpoint(folder, tag="t")
    engine.wait_for_checkpoint()


def test_what_an_engine_saved_loads_into_plain_and_sharded_tensors(tmp_path):
    train_and_save(str(tmp_path))
    reader = CheckpointReader(tmp_path / "t")
    names = [key for key in reader.manifest.tensors if key.startswith(("model/", "optimizer/"))]
    plain = {name: torch.empty(reader.shape(name), dtype=reader.dtype(name)) for name in names}
    dcp.load(plain, storage_reader=SafetensorsReader(tmp_path / "t"), no_dist=True)
    assert len(names) == 12
    assert all(torch.equal(plain[name], reader.full(name)) for name in names)


def test_a_changed_byte_is_found_before_anything_is_loaded(tmp_path):
    dcp.save(values(), storage_writer=SafetensorsWriter(tmp_path / "t"), no_dist=True)
    file = tmp_path / "t" / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    state = blank()
    with pytest.raises(CheckpointException, match=r"rank-00000.safetensors is not what was written"):
        dcp.load(state, storage_reader=SafetensorsReader(tmp_path / "t"), no_dist=True)
    assert all(not tensor.any() for tensor in state.values())
