"""Folders and files of weights: planned by size, written in any order, there when they are whole."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ds_core.checkpoint import Disk
from ds_core.checkpoint.storage.room import check_room
from ds_core.checkpoint.weights.folder import WeightFile, WeightFolder, parse_size, plan_folder
from ds_core.checkpoint.weights.tensor_writer import TensorEntry, TensorWriter
from ds_core.errors import CheckpointError, ConfigError


def entry(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> TensorEntry:
    return TensorEntry(name, dtype, shape)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("5GiB", 5 * 2**30), ("200kb", 200_000), ("1.5 MB", 1_500_000), (77, 77), ("3B", 3)],
)
def test_sizes_are_those_of_transformers(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "big", "-1GB", "0", "5 GBit", "1e9"])
def test_what_is_no_size_is_said(text):
    with pytest.raises(ConfigError, match="max_shard_size takes bytes like"):
        parse_size(text)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_shards_hold_everything_once_and_no_more_than_asked(sizes, limit):
    entries = [entry(f"t{index}", size) for index, size in enumerate(sizes)]
    plan = plan_folder(entries, limit)
    assert [one for held in plan.files.values() for one in held] == entries
    for held in plan.files.values():
        nonempty = [one for one in held if one.nbytes]
        assert sum(one.nbytes for one in held) <= limit or len(nonempty) == 1
    shards = list(plan.files.values())
    for left, right in itertools.pairwise(shards):
        assert sum(one.nbytes for one in left) + right[0].nbytes > limit
    assert (plan.index is None) == (len(shards) == 1)


def test_names_must_be_there_and_distinct():
    with pytest.raises(CheckpointError, match="'a' is there twice"):
        plan_folder([entry("a", 1), entry("b", 1), entry("a", 2)], 100)
    with pytest.raises(CheckpointError, match="no weights"):
        plan_folder([], 100)


def test_pieces_in_any_order_with_casts_make_up_the_file(tmp_path):
    wide = torch.arange(24, dtype=torch.float64).view(4, 6)
    entries = [entry("half", 4, 6, dtype=torch.bfloat16), entry("scalar"), entry("none", 0, 3), entry("wide", 4, 6)]
    writer = TensorWriter(tmp_path / "w.safetensors", entries, {"format": "pt"})
    writer.put("wide", wide[2:], 12)
    writer.put("half", wide.t().contiguous().t())
    writer.put("scalar", torch.tensor(2.5))
    assert not writer.is_done
    writer.put("wide", wide[:2])
    assert writer.is_done
    found = load_file(tmp_path / "w.safetensors")
    assert torch.equal(found["wide"], wide.float())
    assert torch.equal(found["half"], wide.bfloat16())
    assert (found["scalar"].item(), tuple(found["none"].shape)) == (2.5, (0, 3))


def test_what_is_missing_or_too_much_is_said(tmp_path):
    writer = TensorWriter(tmp_path / "w.safetensors", [entry("a", 4)])
    writer.put("a", torch.ones(3))
    with pytest.raises(CheckpointError, match="lacks 4 bytes"):
        writer.finish()
    with pytest.raises(CheckpointError, match=r"elements 2 to 5 of 'a' were to be written; it has 4"):
        writer.put("a", torch.ones(3), 2)
    writer.close()
    with pytest.raises(CheckpointError, match="safetensors cannot hold"):
        TensorWriter(tmp_path / "x.safetensors", [entry("c", 1, dtype=torch.complex128)])


def written(target, value: float, limit: int = 100) -> None:
    folder = WeightFolder(target, plan_folder([entry("a", 5), entry("b", 5)], limit))
    for name in ("b", "a"):
        folder.put(name, torch.full((5,), value))
    folder.add("config.json", b"{}")
    folder.commit()


def test_a_folder_appears_when_it_is_committed(tmp_path):
    target = tmp_path / "deep" / "out"
    folder = WeightFolder(target, plan_folder([entry("a", 5)], 100))
    folder.put("a", torch.ones(5))
    assert not target.exists()
    folder.commit()
    folder.abandon()
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert torch.equal(load_file(target / "model.safetensors")["a"], torch.ones(5))


def test_weights_of_any_layout_replace_those_before_and_nothing_else(tmp_path):
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model-00009-of-00009.safetensors"):
        (tmp_path / name).write_text("old")
    for name in ("adapter_model.safetensors", "model.onnx"):
        (tmp_path / name).write_text("other")
    written(tmp_path, 1.0, limit=20)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 10, "total_size": 40}
    written(tmp_path, 2.0)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors", "config.json", "model.onnx", "model.safetensors"
    }  # fmt: skip


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    written(tmp_path / "link", 1.0)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").is_file()


def test_a_file_is_no_target(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file; name a folder"):
        WeightFolder(tmp_path / "file", plan_folder([entry("a", 5)], 100))


def test_one_file_replaces_another_when_it_is_whole(tmp_path):
    target = tmp_path / "w.safetensors"
    target.write_text("old")
    file = WeightFile(target, [entry("a", 2)])
    file.put("a", torch.ones(1))
    with pytest.raises(CheckpointError, match="lacks 4 bytes"):
        file.commit()
    file.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    assert target.read_text() == "old"


def test_room_is_that_of_the_nearest_folder_there_is(tmp_path):
    class Small(Disk):
        def free_bytes(self, path):
            assert path == tmp_path
            return 10 << 20

    check_room(tmp_path / "a" / "b", 8 << 20, Small())
    with pytest.raises(CheckpointError, match="has room for 10,485,760 bytes and 10,485,760 are to be written"):
        check_room(tmp_path / "a" / "b", 10 << 20, Small())
