"""Export and import: weights leave as Hugging Face folders, and any source comes in as a checkpoint."""

from __future__ import annotations

import json
import math

import pytest
import torch
from checkpoint_folder import build, step
from safetensors.torch import load_file

from ds_core.checkpoint import Disk, get_fp32_state_dict_from_zero_checkpoint, open_source
from ds_core.checkpoint.manage import convert as module
from ds_core.checkpoint.manage.compare import compare
from ds_core.checkpoint.manage.convert import source_bytes, write_source
from ds_core.checkpoint.weights.export import export_weights
from ds_core.errors import CheckpointError

# --- export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("keep", None)]
)
def test_export_writes_the_dtype_asked_for_from_the_finest_copy(ds, folder, dtype, kind):
    source = open_source(folder)
    code, out, _ = ds("export", folder, folder / "out", "--dtype", dtype)
    assert code == 0
    assert "4 tensors" in out
    for name, tensor in load_file(folder / "out" / "model.safetensors").items():
        own = source.full(f"model/{name}")
        master = source.full(f"optimizer/master/{name}")
        assert torch.equal(tensor, own if kind in (None, torch.bfloat16) else master.to(kind))


def test_export_takes_a_tag_before_the_target_or_as_an_option(ds, folder):
    assert ds("export", folder, "global_step1", folder / "a")[0] == 0
    assert ds("export", folder, folder / "b", "--tag", "global_step1", "--max_shard_size", "5GB")[0] == 0
    assert ds("export", folder / "global_step1", folder / "c", "--exclude_frozen_parameters")[0] == 0
    first, second, third = ((folder / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == second == third
    assert ds("export", folder, "global_step3", folder / "a")[0] == 0
    assert (folder / "a" / "model.safetensors").read_bytes() != first
    code, _, err = ds("export", folder, "global_step1", folder / "a", "--tag", "global_step1")
    assert code == 2
    assert "export takes DIR [TAG] OUT" in err


def test_export_copies_the_configuration_with_the_dtype_that_was_written(ds, folder, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    settings = {"model_type": "toy", "torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "n": 3}}
    (model / "config.json").write_text(json.dumps(settings))
    for name in (
        "tokenizer.json",
        "vocab.txt",
        "model.safetensors",
        "model.safetensors.index.json",
        "training_args.bin",
    ):
        (model / name).write_text(name)
    out = tmp_path / "out"
    assert ds("export", folder, out, "--config-from", model)[0] == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    written = json.loads((out / "config.json").read_text())
    assert written == {"model_type": "toy", "torch_dtype": "float32", "text_config": {"dtype": "float32", "n": 3}}
    code, _, err = ds("export", folder, out, "--config-from", tmp_path)
    assert code == 2
    assert "is not a Hugging Face model folder" in err


# --- import -------------------------------------------------------------------------------------------------------


def test_what_was_imported_trains_on_to_the_bit(ds, folder, tmp_path):
    copied = tmp_path / "copied"
    code, out, _ = ds("import", folder, copied)
    assert code == 0
    assert f"global_step3: {len(open_source(folder).keys())} tensors" in out
    assert not compare(open_source(folder), open_source(copied))
    assert ds("verify", copied)[0] == 0
    weights = []
    for root in (folder, copied):
        engine = build()
        assert engine.load_checkpoint(root)[1] == {"epoch": 2}
        step(engine)
        weights.append({name: tensor.clone() for name, tensor in engine.module.state_dict().items()})
        assert engine.global_steps == 4
        engine.destroy()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_tag_that_is_taken_is_replaced_only_when_asked(ds, folder):
    words = ("import", folder, folder, "--source-tag", "global_step1", "--tag", "global_step2", "--no-latest")
    code, _, err = ds(*words)
    assert code == 2
    assert "has a checkpoint 'global_step2' already" in err
    assert ds(*words, "--overwrite")[0] == 0
    assert not compare(open_source(folder, "global_step1"), open_source(folder, "global_step2"))
    assert (folder / "latest").read_text() == "global_step3"
    assert not list(folder.glob(".*"))


SHAPES = {"model/wide": (7, 1 << 20), "model/flat": (5 << 20,), "model/scalar": (), "model/empty": (0, 3)}


class Large:
    """A source of tensors that are nowhere; notes the largest piece that was asked for."""

    path, format, strict = "nowhere", "test", True

    def __init__(self) -> None:
        self.counters = {"global_steps": 7}
        self.client_state = {"a": 1}
        self.largest = 0

    def keys(self):
        return list(SHAPES)

    def shape(self, key):
        return SHAPES[key]

    def dtype(self, key):
        return torch.int32

    def value(self, name, default=None):
        return {"type": None, "groups": []} if name == "optimizer" else default

    def read(self, key, out, start=0):
        self.largest = max(self.largest, out.nbytes)
        out.copy_(torch.arange(start, start + out.numel(), dtype=torch.int32))


def test_large_tensors_are_cut_and_come_back_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 8 << 20)
    source, told = Large(), []
    write_source(source, tmp_path, "t", told=told.append)
    assert source.largest <= 8 << 20
    assert sum(told) == source_bytes(source)
    found = open_source(tmp_path)
    found.verify()
    for key, shape in SHAPES.items():
        if math.prod(shape):
            assert torch.equal(found.full(key), torch.arange(math.prod(shape), dtype=torch.int32).view(shape))
    assert found.counters == {"global_steps": 7}
    assert found.value("optimizer") == {"type": None, "groups": []}


class Full(Disk):
    def write(self, fd, view, offset):
        if offset > 0:
            raise OSError(28, "No space left on device")
        return super().write(fd, view, offset)


def test_a_failed_import_leaves_nothing_and_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr("ds_core.checkpoint.saving.stream.STREAMING_BLOCKS", 1)
    with pytest.raises(OSError, match="No space left"):
        write_source(Large(), tmp_path, "t", disk=Full())
    assert list(tmp_path.iterdir()) == []

    class Broken(Large):
        def read(self, key, out, start=0):
            if key == "model/flat":
                raise CheckpointError("a file is missing")
            super().read(key, out, start)

    with pytest.raises(CheckpointError, match="a file is missing"):
        write_source(Broken(), tmp_path, "t")
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_of_two_names_comes_in_and_goes_out_once(tmp_path):
    class Tied(Large):
        def keys(self):
            return ["model/embed", "model/head"]

        def shape(self, key):
            return (3, 4)

        def value(self, name, default=None):
            return {"frozen": [], "tied": {"head": "embed"}} if name == "module" else default

    write_source(Tied(), tmp_path, "t")
    found = open_source(tmp_path)
    assert list(found.keys()) == ["model/embed"]
    assert found.value("module")["tied"] == {"head": "embed"}
    export_weights(Tied(), tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {"embed"}
    whole = get_fp32_state_dict_from_zero_checkpoint(tmp_path)
    assert whole["head"] is whole["embed"]


def test_weights_of_hugging_face_come_in_and_are_listed(ds, folder, tmp_path):
    weights = tmp_path / "weights"
    assert ds("export", folder, weights, "--dtype", "keep", "--max-shard-size", "100B")[0] == 0
    listed = json.loads(ds("ls", weights, "--json")[1])["checkpoints"]
    assert [(row["format"], row["tag"], row["is_latest"]) for row in listed] == [("huggingface", "", True)]
    assert ds("verify", weights)[0] == 0
    assert ds("import", weights, tmp_path / "in")[0] == 0
    assert ds("diff", weights, tmp_path / "in")[0] == 0
    assert ds("diff", tmp_path / "in", folder, "--tensors", "model/*")[0] == 0
    engine = build()
    engine.load_checkpoint(tmp_path / "in", load_module_only=True)
    for name, tensor in engine.module.state_dict().items():
        assert torch.equal(tensor, open_source(folder).full(f"model/{name}"))


def test_a_folder_of_torchs_own_format_comes_in(ds, tmp_path):
    import torch.distributed.checkpoint as dcp

    state = {"model": {"weight": torch.arange(12.0).view(3, 4), "bias": torch.arange(3)}}
    dcp.save(state, checkpoint_id=tmp_path / "dcp")
    assert ds("import", tmp_path / "dcp", tmp_path / "in")[0] == 0
    found = open_source(tmp_path / "in")
    assert {key: found.full(key).tolist() for key in found.keys()} == {  # noqa: SIM118
        "model/weight": state["model"]["weight"].tolist(),
        "model/bias": state["model"]["bias"].tolist(),
    }
    assert found.manifest.plan == {"imported_from": "torch-dcp"}
