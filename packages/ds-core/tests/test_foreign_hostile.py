"""Hostile checkpoints: each is refused with the file and the reason, and no code of theirs runs."""

from __future__ import annotations

import builtins
import os
import pickle  # noqa: TID251 - what is refused has to be written first
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_core.checkpoint.foreign import pickles
from ds_core.checkpoint.foreign.plain import plain
from ds_core.checkpoint.foreign.records import Record
from ds_core.checkpoint.foreign.torch_file import read_torch_file
from ds_core.checkpoint.sources import open_source
from ds_core.errors import CheckpointError

# ---- files as an attacker would write them

HEAD = b"\x80\x02"
STOP = b"."


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """The opcode that pushes an integer of any size."""
    content = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def name(module: str, attribute: str) -> bytes:
    """The opcode that pushes a global."""
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def called(function: bytes, *arguments: bytes) -> bytes:
    """A function applied to arguments."""
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    """A persistent id of a storage."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(at: bytes, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A tensor over a storage."""
    sizes = b"(" + b"".join(map(number, shape)) + b"t"
    steps = b"(" + b"".join(map(number, stride)) + b"t"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return called(rebuild, at, number(offset), sizes, steps, b"\x89", name("collections", "OrderedDict") + b")R")


def archive(
    path: Path,
    recipe: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    others: Mapping[str, bytes] | None = None,
) -> Path:
    """A zip file as torch.save writes it, around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", recipe)
        file.writestr("archive/byteorder", b"little")
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
        for other, content in (others or {}).items():
            file.writestr(other, content)
    return path


def legacy(path: Path, value: Any) -> Path:
    """A file of torch.save as torch wrote it before 1.6."""
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def pickled(value: Any, protocol: int = 2) -> bytes:
    """What Python's own pickler makes of a value."""
    return pickle.dumps(value, protocol)


# ---- code


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.recipe = (function, arguments)

    def __reduce__(self) -> Any:
        return self.recipe


@pytest.fixture
def canary(tmp_path: Path):
    """A path that code in a file would create; it must never be there."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code in a checkpoint ran"


def refuse(path: Path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value)


RUNNERS = {
    "os.system": lambda canary: Calls(os.system, f"touch {canary}"),
    "eval": lambda canary: Calls(builtins.eval, f"open({str(canary)!r}, 'w')"),
    "exec": lambda canary: Calls(builtins.exec, f"open({str(canary)!r}, 'w')"),
    "open": lambda canary: Calls(builtins.open, str(canary), "w"),
    "subprocess": lambda canary: Calls(subprocess.check_output, ["touch", str(canary)]),
    "getattr": lambda canary: Calls(builtins.getattr, Calls(__import__, "os"), "system"),
    "import": lambda canary: Calls(__import__, "antigravity"),
    "rmtree": lambda canary: Calls(shutil.rmtree, str(canary.parent)),
    "load": lambda canary: Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {canary}"))),
    "torch.load": lambda canary: Calls(torch.load, str(canary)),
    "nested": lambda canary: {"model": [({"deep": Calls(os.system, f"touch {canary}")},)]},
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_call_of_anything_is_refused_by_name(tmp_path, canary, runner, protocol):
    path = archive(tmp_path / "a.pt", pickled(RUNNERS[runner](canary), protocol))
    refuse(path, r"refused at byte \d+ of its pickle: it names '[\w.]+', which is no part of a checkpoint")


def test_the_same_in_a_legacy_file(tmp_path, canary):
    refuse(legacy(tmp_path / "a.pt", Calls(os.system, f"touch {canary}")), "it names 'posix.system'")


def test_the_canary_would_sing(tmp_path):
    path = tmp_path / "canary"
    pickle.loads(pickled(Calls(os.system, f"touch {path}")))
    assert path.exists(), "the corpus would run nothing even where it is not refused"


STRANGE = {
    "a member of os through an inert enum": (
        called(name("builtins", "getattr"), name("deepspeed.x", "E"), text("system")) + b"(" + text("true") + b"tR",
        "it calls a Record",
    ),
    "getattr of a table entry": (
        called(name("builtins", "getattr"), name("collections", "OrderedDict"), text("fromkeys")),
        "only a member of an inert enum",
    ),
    "a dotted name": (name("torch", "_utils.os.system"), "it names 'torch._utils.os.system'"),
    "a lookalike module": (name("deepspeedx", "Scaler"), "it names 'deepspeedx.Scaler'"),
    "state of a tensor": (tensor(storage(), 0, (2,), (1,)) + b"}b", "state is given to a StoredTensor"),
    "state of a type": (name("deepspeed.x", "Scaler") + b"}b", "state is given to a Global"),
    "state that is no dict": (
        called(name("deepspeed.x", "Scaler")) + b"]b",
        "the state of a deepspeed.x.Scaler is a list",
    ),
    "a call of a text": (text("os.system") + b")R", "it calls a str"),
    "a call of a dtype": (name("torch", "float32") + b")R", "it calls a dtype"),
    "an object of a function": (name("torch._utils", "_rebuild_tensor_v2") + b")\x81", "arguments it cannot have"),
    "old-style instances": (b"(" + text("x") + b"ios\nsystem\n", "opcode INST is in no checkpoint"),
    "objects": (b"(" + name("deepspeed.x", "A") + b"o", "opcode OBJ is in no checkpoint"),
    "extensions": (b"\x82\x01", "opcode EXT1 is in no checkpoint"),
    "buffers": (b"\x97", "opcode NEXT_BUFFER is in no checkpoint"),
    "persistent texts": (b"Pos.system\n", "opcode PERSID is in no checkpoint"),
    "a persistent id of something else": (text("module") + b"Q", "a persistent id is not that of a storage"),
    "nested keys": (b"})" + b"\x85" * 30 + b"Ns", "a key is a tuple"),
    "a list as key": (b"}]Ns", "a key is a list"),
    "items of a text": (text("x") + b"NNs", "items are put into a str"),
    "a subclass of Tensor": (
        called(
            name("torch._tensor", "_rebuild_from_type_v2"), name("torch._utils", "_rebuild_parameter"), text("A"), b")"
        ),
        "a subclass of Tensor",
    ),
    "a numpy type of objects": (called(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88"), "numpy dtype 'O8'"),
    "underflow": (b"0", "damaged or cut short"),
    "an absent memo": (b"h\x07", "damaged or cut short"),
    "two results": (b"NN", "leaves 2 objects"),
    "a long text": (b"X\xff\xff\xff\x7fa", "longer than|damaged or cut short"),
    "a huge text": (b"\x8d" + struct.pack("<Q", 1 << 62) + b"a", "longer than|damaged or cut short"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_opcodes_are_refused(tmp_path, canary, what):
    recipe, reason = STRANGE[what]
    refuse(archive(tmp_path / "a.pt", HEAD + recipe + STOP, {"0": bytes(16)}), reason)


def test_an_allowed_class_stays_a_name_whatever_its_state_says(tmp_path, canary, monkeypatch):
    # The wheel of that name may be installed, and another test of this process may have imported it.
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    evil = b"}(" + text("__class__") + text("x") + text("__reduce__") + name("collections", "OrderedDict") + b"ub"
    found = read_torch_file(archive(tmp_path / "a.pt", HEAD + called(name("deepspeed.evil", "Scaler")) + evil + STOP))
    assert type(found) is Record
    assert (found.name, found.get("__class__")) == ("deepspeed.evil.Scaler", "x")
    assert "deepspeed" not in sys.modules


BEYOND = {
    "storages longer than their entry": (
        tensor(storage(numel=1 << 40), 0, (2,), (1,)),
        r"1099511627776 elements .* has 16 b",
    ),
    "storages that are not there": (tensor(storage("9"), 0, (2,), (1,)), "'archive/data/9' is not in the file"),
    "names that leave": (tensor(storage("../../x"), 0, (2,), (1,)), "is not in the file"),
    "views behind the end": (tensor(storage(), 2, (3,), (1,)), "go beyond a storage of 4 elements"),
    "strides behind the end": (tensor(storage(), 0, (2, 2), (3, 1)), "go beyond"),
    "negative strides": (tensor(storage(), 3, (4,), (-1,)), "one is negative"),
    "negative offsets": (tensor(storage(), -1, (2,), (1,)), "one is negative"),
    "strides that overflow": (tensor(storage(), 0, (2, 2), (1 << 63, 1)), "go beyond"),
    "sizes that overflow": (tensor(storage(), 0, (1 << 62, 4), (0, 1)), "go beyond"),
    "expansion": (tensor(storage(), 0, (1 << 40,), (0,)), "go beyond"),
    "negative storages": (tensor(storage(numel=-4), 0, (2,), (1,)), "not that of a storage"),
    "dimensions": (tensor(storage(), 0, (1,) * 65, (1,) * 65), "65 sizes"),
}


@pytest.mark.parametrize("what", BEYOND)
def test_tensors_beyond_their_storage_are_refused(tmp_path, what):
    recipe, reason = BEYOND[what]
    refuse(archive(tmp_path / "a.pt", HEAD + recipe + STOP, {"0": bytes(16)}), reason)


def test_a_compressed_entry_is_refused_before_it_expands(tmp_path):
    path = archive(tmp_path / "a.pt", HEAD + b"N" + STOP, {"0": bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED)
    refuse(path, "is compressed")


@pytest.mark.parametrize("entry", ["../evil", "/etc/passwd", "archive/../../evil", "a\\b"])
def test_names_that_leave_the_archive_are_refused(tmp_path, entry):
    refuse(archive(tmp_path / "a.pt", HEAD + b"N" + STOP, others={entry: b"x"}), "has a name that leaves its folder")


def test_entries_that_overlap_are_refused(tmp_path):
    """Two names of one entry: the directory says so twice."""
    path = archive(tmp_path / "a.pt", HEAD + b"N" + STOP, {"0": bytes(64)})
    content = path.read_bytes()
    end = content.rfind(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HII", content, end + 10)
    last = content.rfind(b"PK\x01\x02")
    again = content[last:end].replace(b"data/0", b"data/1")
    tail = bytearray(content[end:])
    struct.pack_into("<HHII", tail, 8, count + 1, count + 1, size + len(again), start)
    path.write_bytes(content[:end] + again + bytes(tail))
    refuse(path, "overlaps the one before it")


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save({"a": torch.arange(40.0), "b": [1, 2]}, whole)
    content = whole.read_bytes()
    for size in range(0, len(content), 97):
        path = tmp_path / "cut.pt"
        path.write_bytes(content[:size])
        refuse(path, "cut short|damaged|no file of torch.save")


def test_a_legacy_file_cut_short_anywhere_is_refused(tmp_path):
    content = legacy(tmp_path / "whole.pt", {"a": torch.arange(40.0), "b": [1, 2]}).read_bytes()
    for size in range(0, len(content), 23):
        path = tmp_path / "cut.pt"
        path.write_bytes(content[:size])
        refuse(path, "cut short|damaged|no file of torch.save")


def test_a_program_of_torchscript_is_refused(tmp_path):
    path = archive(tmp_path / "a.pt", HEAD + b"N" + STOP, others={"archive/constants.pkl": HEAD + b")" + STOP})
    refuse(path, "TorchScript archive, which holds a program")


def test_limits_of_steps_and_objects_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    monkeypatch.setattr(pickles, "MAX_OBJECTS", 100)
    refuse(archive(tmp_path / "a.pt", HEAD + b"N0" * 600 + b"N" + STOP), "more than 1000 steps")
    refuse(archive(tmp_path / "a.pt", HEAD + b"]0" * 200 + b"N" + STOP), "more than 100 objects")


def test_values_that_contain_themselves_or_unfold_without_end_are_not_followed(tmp_path, monkeypatch):
    itself = read_torch_file(archive(tmp_path / "a.pt", HEAD + b"]q\x00h\x00a" + STOP))
    with pytest.raises(CheckpointError, match=r"nested deeper than"):
        plain(itself, "x", [])
    laughs = b"](NNeq\x00" + b"".join(b"0](" + b"h%c" % i * 2 + b"eq%c" % (i + 1) for i in range(35))
    many = read_torch_file(archive(tmp_path / "b.pt", HEAD + laughs + STOP))
    monkeypatch.setattr("ds_core.checkpoint.foreign.plain.MAX_VALUES", 10_000)
    with pytest.raises(CheckpointError, match=r"nested to more than"):
        plain(many, "x", [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small DeepSpeed checkpoint of stage 0."""
    path = tmp_path / "run" / "step1"
    path.mkdir(parents=True)
    (path.parent / "latest").write_text("step1")
    torch.save({"module": {"w": torch.ones(2)}, "global_steps": 1}, path / "mp_rank_00_model_states.pt")
    return path


def test_a_link_out_of_the_checkpoint_is_refused(folder, tmp_path):
    file = folder / "mp_rank_00_model_states.pt"
    file.rename(tmp_path / "elsewhere.pt")
    file.symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(CheckpointError, match="symbolic link that leads out of the checkpoint"):
        open_source(folder.parent)


def test_what_is_no_regular_file_is_refused(folder):
    file = folder / "mp_rank_00_model_states.pt"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="is no regular file"):
        open_source(folder.parent)


@pytest.mark.parametrize("tag", ["../run/step1", "/etc", ".."])
def test_a_tag_that_leaves_the_folder_is_refused(folder, tag):
    (folder.parent / "latest").write_text(tag)
    with pytest.raises(CheckpointError, match=r"no checkpoint in"):
        open_source(folder.parent)


ODD: dict[str, dict[str, Any]] = {
    "weights that are a list": {"module": [1, 2]},
    "no weights": {"module": None},
    "an optimizer that is a text": {"module": {"w": torch.ones(2)}, "optimizer": "adam"},
    "groups that are numbers": {"module": {"w": torch.ones(2)}, "optimizer": {"state": {}, "param_groups": [1]}},
    "a buffer list that is a number": {"module": {"w": torch.ones(2)}, "buffer_names": 7, "optimizer": None},
}


@pytest.mark.parametrize("what", ODD)
def test_a_structure_that_is_not_deepspeeds_is_one_error_that_names_the_checkpoint(folder, what):
    torch.save(ODD[what], folder / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"run/step1"):
        open_source(folder.parent)
