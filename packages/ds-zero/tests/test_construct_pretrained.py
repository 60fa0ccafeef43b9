"""Ranges of tensors out of real safetensors files, and what is said about files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ds_core.errors import CheckpointError
from ds_zero.construct import Recording, load_safetensors

TENSORS = {
    "weight": torch.arange(35, dtype=torch.float32).reshape(5, 7),
    "half": torch.linspace(-1, 1, 12).to(torch.bfloat16).reshape(3, 2, 2),
    "ids": torch.arange(9),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "none": torch.zeros(0, 4),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.fixture
def indexed(tmp_path):
    folder = tmp_path / "indexed"
    folder.mkdir()
    parts = {"a.safetensors": ["weight", "none"], "b.safetensors": ["half", "ids", "flags", "scalar"]}
    for name, names in parts.items():
        save_file({key: TENSORS[key] for key in names}, folder / name)
    weights = {key: name for name, names in parts.items() for key in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return folder


@pytest.mark.parametrize("name", TENSORS)
def test_any_range_is_read(file, name):
    ((found, reader),) = load_safetensors(file, [name], allow_unexpected=True)
    flat = TENSORS[name].flatten()
    assert (found, reader.dtype, reader.shape) == (name, flat.dtype, SHAPES[name])
    for start in range(flat.numel() + 1):
        for stop in range(start, flat.numel() + 1):
            assert torch.equal(reader.read(start, stop), flat[start:stop])
    assert torch.equal(reader.read(), flat)


def test_names_come_in_the_order_asked_for(file):
    names = list(reversed(TENSORS))
    assert [name for name, _ in load_safetensors(file, names)] == names


def test_a_folder_with_an_index_is_one_checkpoint(indexed):
    for name, reader in load_safetensors(indexed, SHAPES):
        assert torch.equal(reader.read().reshape(reader.shape), TENSORS[name])


def test_only_the_range_is_read(file):
    """A file whose other bytes are gone after the header was read still gives the range."""
    readers = dict(load_safetensors(file, SHAPES))
    first = min(readers.values(), key=lambda reader: (reader.offset_bytes, -reader.numel))
    with file.open("r+b") as handle:
        handle.truncate(first.offset_bytes + 2 * first.dtype.itemsize)
    assert torch.equal(first.read(0, 2), TENSORS[first.name].flatten()[:2])
    with pytest.raises(CheckpointError, match="too early"):
        first.read()


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2), (0, 36)])
def test_a_range_outside_the_tensor_is_an_error(file, bounds):
    ((_, reader),) = load_safetensors(file, ["weight"], allow_unexpected=True)
    with pytest.raises(CheckpointError, match="it has 35"):
        reader.read(*bounds)


def test_a_missing_tensor_is_named_with_the_nearest(file):
    with pytest.raises(CheckpointError, match=r"lacks 'wieght'\. Did you mean 'weight'"):
        load_safetensors(file, ["wieght"], allow_unexpected=True)


def test_an_unexpected_tensor_is_an_error_unless_allowed(file):
    names = [name for name in TENSORS if name != "ids"]
    with pytest.raises(CheckpointError, match=r"'ids'.*allow_unexpected"):
        load_safetensors(file, names)
    assert [name for name, _ in load_safetensors(file, names, allow_unexpected=True)] == names


def test_another_shape_is_an_error_before_anything_is_read(file):
    with pytest.raises(CheckpointError, match=r"'weight'.*shape \(5, 7\).*\(7, 5\)"):
        load_safetensors(file, SHAPES | {"weight": (7, 5)})


def test_another_dtype_is_an_error(file):
    with pytest.raises(CheckpointError, match=r"'half'.*torch\.bfloat16, expected torch\.float32"):
        load_safetensors(file, ["weight", "half"], dtype=torch.float32, allow_unexpected=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def long_header(path: Path) -> None:
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])


def no_json(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] = ord("x")
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate, "cut short"), (long_header, "not a whole"), (no_json, "damaged"), (empty, "not a whole")],
)
def test_a_damaged_file_is_an_error(file, damage, message):
    damage(file)
    with pytest.raises(CheckpointError, match=message):
        load_safetensors(file, SHAPES)


@pytest.mark.parametrize("place", ["../model.safetensors", "gone.safetensors", "b.safetensors"])
def test_an_index_that_points_elsewhere_is_an_error(indexed, place):
    index = indexed / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["weight"] = place
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_safetensors(indexed, SHAPES)


def test_a_folder_without_safetensors_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        load_safetensors(tmp_path, [])


def test_a_parameter_loaded_into_a_meta_model_is_handed_over_once():
    seen = []

    def shard(module, name, parameter):
        seen.append(name)
        parameter.data = torch.ones(1)  # the callback's own operators are not recorded

    with Recording() as recording:
        recording.on_real_parameter(shard)
        model = nn.Linear(2, 2, device="meta")
        loaded = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model.weight = loaded
        model.bias = nn.Parameter(torch.tensor([0.0, 0.0]))
        tied = nn.Linear(2, 2, device="meta")
        tied.weight = loaded
        own = nn.Linear(2, 2)
        own.extra = nn.Parameter(torch.tensor(1.0))
    assert seen == ["weight", "bias"]
    assert model.weight is loaded
    assert loaded.item() == 1.0
    assert {parameter for parameter, _ in recording.replay()} == set(own.parameters())


def test_a_callback_may_give_another_parameter():
    with Recording() as recording:
        recording.on_real_parameter(lambda module, name, parameter: nn.Parameter(parameter.detach()[:1].clone()))
        model = nn.Linear(2, 2, device="meta")
        model.bias = nn.Parameter(torch.tensor([5.0, 6.0]))
    assert model.bias.tolist() == [5.0]
    assert list(recording.replay()) == []
