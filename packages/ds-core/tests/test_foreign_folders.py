"""Folders others wrote: torch.distributed.checkpoint and Hugging Face, and DeepSpeed's where something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.fsdp import fully_shard

import ds_core
from ds_core.checkpoint.sources import open_source
from ds_core.errors import CheckpointError
from ds_core.testing import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 5), nn.Linear(5, 1))


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, rows: slice, steps: range) -> None:
    for step in steps:
        module(batch(step)[rows]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer, layout: str) -> dict[str, Any]:
    options = StateDictOptions(flatten_optimizer_state_dict=layout == "flat")
    weights, states = get_state_dict(module, optimizer, options=options)
    both = {"model": weights, "optimizer": states, "step": 3, "notes": {"a": [1, 2]}}
    return {"app": both} if layout == "app" else both


def write_dcp(folder: str, layout: str) -> dict[str, torch.Tensor]:
    """Two ranks of FSDP2 train and save; the full tensors, and the weights after one more step."""
    module = model()
    for layer in module:
        fully_shard(layer)
    fully_shard(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    rank = ds_core.comm.get_rank()
    rows = slice(4 * rank, 4 * rank + 4)
    train(module, optimizer, rows, range(3))
    dcp.save(state_of(module, optimizer, layout), checkpoint_id=folder)
    found = {f"model/{name}": p.full_tensor().clone() for name, p in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for state in ("exp_avg", "exp_avg_sq"):
            found[f"optimizer/{state}/{name}"] = optimizer.state[parameter][state].full_tensor().clone()
    train(module, optimizer, rows, range(3, 4))
    return found | {f"next/{name}": p.full_tensor().clone() for name, p in module.state_dict().items()}


def start_and_write(folder: str) -> dict[str, dict[str, torch.Tensor]]:
    ds_core.comm.init_distributed("gloo", verbose=False)
    return {layout: write_dcp(f"{folder}/{layout}", layout) for layout in ("nested", "app", "flat")}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("dcp")
    return folder, run_ranks(start_and_write, 2, str(folder))[0]


@pytest.mark.parametrize("layout", ["nested", "app", "flat"])
def test_what_fsdp_saved_is_found_under_our_names(written, layout):
    folder, values = written
    source = open_source(folder / layout)
    assert source.format == "torch-dcp"
    golden = {key: value for key, value in values[layout].items() if not key.startswith("next/")}
    assert set(source.keys()) == set(golden)
    assert all(torch.equal(source.full(key), value) for key, value in golden.items())
    out = torch.empty(9)
    source.read("model/0.weight", out, 20)
    assert torch.equal(out, golden["model/0.weight"].view(-1)[20:29])
    assert source.value("optimizer_scalars")["1.bias"] == {"step": {"tensor": 3.0}, "taken": 3}
    assert source.value("optimizer")["groups"][0]["lr"] == 0.01
    assert source.client_state == {"step": 3, "notes": {"a": [1, 2]}}


def resume(folder: str, stage: int) -> dict[str, torch.Tensor]:
    module = model()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    config = {"train_micro_batch_size_per_gpu": 4, "gradient_clipping": 0.0, "zero_optimization": {"stage": stage}}
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.5)
    engine = ds_core.initialize(model=module, optimizer=optimizer, config=config)[0]
    engine.load_checkpoint(folder)
    rank = ds_core.comm.get_rank()
    engine.backward(engine(batch(3)[4 * rank : 4 * rank + 4]).square().mean())
    engine.step()
    return {name: value.clone() for name, value in engine.module_state_dict().items()}


def test_an_engine_goes_on_where_fsdp_was(written):
    folder, values = written
    found = run_ranks(resume, 2, str(folder / "nested"), 0)[0]
    assert max(float((found[name] - values["nested"][f"next/{name}"]).abs().max()) for name in found) < 2e-6


def test_a_model_alone_needs_no_name(tmp_path):
    dcp.save(model().state_dict(), checkpoint_id=tmp_path / "m", no_dist=True)
    source = open_source(tmp_path / "m")
    assert torch.equal(source.full("model/1.weight"), model()[1].weight)


def test_what_wrappers_put_before_names_is_taken_off(tmp_path):
    weights = {f"module._orig_mod.{name}": value for name, value in model().state_dict().items()}
    dcp.save({"model": weights}, checkpoint_id=tmp_path / "m", no_dist=True)
    assert "model/0.weight" in open_source(tmp_path / "m").keys()  # noqa: SIM118


def test_numbered_states_of_dcp_are_left_out_and_said(tmp_path, caplog):
    module = model()
    optimizer = torch.optim.AdamW(module.parameters())
    train(module, optimizer, slice(8), range(1))
    saved = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(saved, checkpoint_id=tmp_path / "m", no_dist=True)
    assert open_source(tmp_path / "m").value("optimizer") is None
    assert "save what get_state_dict" in caplog.text


def test_metadata_of_other_classes_is_refused(written, tmp_path):
    shutil.copytree(written[0] / "nested", tmp_path / "m")
    metadata = tmp_path / "m" / ".metadata"
    metadata.write_bytes(metadata.read_bytes().replace(b"TensorProperties", b"TensorPropertiez"))
    with pytest.raises(CheckpointError, match=r"\.metadata: refused .*metadata\.TensorPropertiez"):
        open_source(tmp_path / "m")


def test_a_data_file_that_is_gone_or_elsewhere_is_named(written, tmp_path):
    shutil.copytree(written[0] / "nested", tmp_path / "m")
    metadata = tmp_path / "m" / ".metadata"
    metadata.write_bytes(metadata.read_bytes().replace(b"__0_0.distcp", b"../..distcp_"))
    with pytest.raises(CheckpointError, match=r"which is no file beside it"):
        open_source(tmp_path / "m")
    shutil.copy(written[0] / "nested" / ".metadata", metadata)
    (tmp_path / "m" / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0.distcp cannot be read"):
        open_source(tmp_path / "m").full("model/0.weight")


# ---- Hugging Face


def split(folder: Path, suffix: str, write: Any) -> dict[str, torch.Tensor]:
    """Two files and an index."""
    weights = dict(model().state_dict())
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    places = {name: f"{stem}-0000{1 + index % 2}-of-00002.{suffix}" for index, name in enumerate(weights)}
    for file in set(places.values()):
        write({name: weights[name] for name in weights if places[name] == file}, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return weights


WRITERS = {"safetensors": save_file, "bin": torch.save}


@pytest.mark.parametrize("suffix", WRITERS)
def test_weights_of_hugging_face_are_read_by_their_index(tmp_path, suffix):
    weights = split(tmp_path, suffix, WRITERS[suffix])
    source = open_source(tmp_path)
    assert source.format == "huggingface"
    assert {key.removeprefix("model/") for key in source.keys()} == set(weights)  # noqa: SIM118
    assert all(torch.equal(source.full(f"model/{name}"), value) for name, value in weights.items())


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_engine_takes_weights_and_says_how_when_asked_for_more(tmp_path, suffix):
    weights = split(tmp_path, suffix, WRITERS[suffix])
    config = {"train_micro_batch_size_per_gpu": 4, "optimizer": {"type": "AdamW", "params": {"lr": 0.01}}}
    engine = ds_core.initialize(model=nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 5), nn.Linear(5, 1)), config=config)[
        0
    ]
    with pytest.raises(CheckpointError, match=r"holds no optimizer state; pass load_module_only=True"):
        engine.load_checkpoint(tmp_path)
    engine.load_checkpoint(tmp_path, load_module_only=True)
    assert all(torch.equal(engine.module.state_dict()[name], value) for name, value in weights.items())


def test_links_of_a_hub_cache_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(dict(model().state_dict()), tmp_path / "blobs" / "abc")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    assert torch.equal(open_source(tmp_path / "snapshot").full("model/0.bias"), model()[0].bias)


def test_an_index_that_promises_too_much_is_named(tmp_path):
    split(tmp_path, "safetensors", save_file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"0.bias"', '"9.bias"'))
    with pytest.raises(CheckpointError, match=r"says '9.bias' is in model-0000"):
        open_source(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names '../secret.safetensors', which is not a file beside it"):
        open_source(tmp_path)


# ---- DeepSpeed's folders, where something is not as it should be


def deepspeed(folder: Path, *names: str) -> Path:
    """A tag with files of these names, each an empty dict but for weights."""
    (folder / "t").mkdir()
    (folder / "latest").write_text("t")
    for name in names:
        torch.save({"module": {"w": torch.ones(2)}}, folder / "t" / name)
    return folder


FILE = "zero_pp_rank_{}_mp_rank_{:02d}_{}_states.pt"
MODEL = "mp_rank_00_model_states.pt"
FAULTS = {
    "a rank is missing": ([MODEL, FILE.format(0, 0, "optim"), FILE.format(2, 0, "optim")], r"lacks the file of rank 1"),
    "tensor parallel": ([MODEL, "mp_rank_01_model_states.pt"], r"tensor-parallel.*ds_to_universal"),
    "pipeline": ([MODEL, "layer_00-model_00-model_states.pt"], r"pipeline stages.*ds_to_universal"),
    "experts": ([MODEL, "layer_0_expert_1_mp_rank_00_model_states.pt"], r"experts.*ds_to_universal"),
    "no optimizer of ZeRO": ([MODEL, FILE.format(0, 0, "optim")], r"holds no optimizer state of ZeRO"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_missing_or_not_served_is_named(tmp_path, fault):
    names, reason = FAULTS[fault]
    with pytest.raises(CheckpointError, match=reason):
        open_source(deepspeed(tmp_path, *names))


def test_the_folder_of_a_tag_can_be_given_itself(tmp_path):
    source = open_source(deepspeed(tmp_path, MODEL) / "t")
    assert source.full("model/w").tolist() == [1.0, 1.0]
