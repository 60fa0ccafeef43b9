"""Checkpoints made to do harm: refused by CheckpointError, nothing is written, nothing outside is read, no code runs.

Hashes are no signatures: whoever can change a checkpoint can make them fit. So every attack here has valid ones.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ds_core.errors import CheckpointError
from ds_core.testing.forgery import Content, forge, forge_header, header, read, sealed
from ds_core.testing.saves import load, save

DATA = "rank-00000.safetensors"
KEY = "model/weight"


# --- watching what a load does -------------------------------------------------------------------------------------

WATCHED: list[tuple[str, tuple[Any, ...]]] = []
IS_WATCHING: list[bool] = []
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.link", "os.chmod")
CODE = ("exec", "compile", "marshal.loads", "pickle.find_class", "import", "os.system", "subprocess.Popen")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if IS_WATCHING and (event == "open" or event in CHANGES or event in CODE):
        WATCHED.append((event, arguments))


sys.addaudithook(_audit)


@pytest.fixture
def step(tmp_path: Path) -> Iterator[Path]:
    """A whole checkpoint; what is done while a test has it watched must be harmless."""
    root = tmp_path / "root"
    save(root, "t", 1)
    load(root)  # imports what a load imports
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"s" * 100)
    WATCHED.clear()
    yield root / "t"
    IS_WATCHING.clear()


def refused(step: Path, *parts: str) -> str:
    """The message of a load, which did nothing but read in the folder."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    IS_WATCHING.append(True)
    try:
        with pytest.raises(CheckpointError) as refusal:
            load(step.parent)
    finally:
        IS_WATCHING.clear()
    seen, outside = list(WATCHED), str(step.parents[1] / "outside")
    WATCHED.clear()
    assert [event for event in seen if event[0] in CHANGES] == []
    assert [event for event in seen if event[0] in CODE] == []
    opened = [arguments for event, arguments in seen if event == "open"]
    assert [arguments for arguments in opened if writes(*arguments)] == []
    assert [arguments for arguments in opened if str(arguments[0]).startswith(outside)] == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000
    message = str(refusal.value)
    assert all(part in message for part in parts), message
    return message


def writes(_path: object, mode: object, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)) or any(c in str(mode) for c in "wax+")


# --- the manifest --------------------------------------------------------------------------------------------------


def piece(content: Content) -> Content:
    found: Content = content["tensors"][KEY]["pieces"][0]
    return found


def renamed_file(name: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["files"][name] = content["files"].pop(DATA)
        for tensor in content["tensors"].values():
            for each in tensor["pieces"]:
                each["file"] = name

    return change


def at(*path: Any, value: Any) -> Callable[[Content], None]:
    """Puts `value` at a place of the manifest."""

    def change(content: Content) -> None:
        here: Any = content
        for name in path[:-1]:
            here = here[name]
        here[path[-1]] = value

    return change


def twice(content: Content) -> None:
    pieces = content["tensors"][KEY]["pieces"]
    pieces.append(copy.deepcopy(pieces[0]))


def overlapping(content: Content) -> None:
    entry = content["tensors"][KEY]
    first = {**entry["pieces"][0], "offset": [0, 0], "size": [63, 33]}
    entry["pieces"] = [first, {**first, "offset": [62, 0], "size": [1, 33]}]


T = ("tensors", KEY)
P = (*T, "pieces", 0)
MANIFESTS: dict[str, Callable[[Content], None]] = {
    **{f"a file {name!r}": renamed_file(name) for name in ("../outside/secret", "/etc/passwd", "a\0b", "sub/x", "..")},
    **{f"a file {name!r}": renamed_file(name) for name in (".", "", "x" * 5000, "..\\up", "~/x", "\ud800")},
    **{
        f"a shape {shape}": at(*T, "shape", value=shape)
        for shape in (
            [2**63],
            [2**62],
            [2**31] * 3,
            [-1],
            [64.0, 33],
            [True, 33],
            ["64", 33],
            [0, 2**63],
            [64],
            5,
            None,
        )
    },
    "a shape of many dimensions": at(*T, "shape", value=[1] * 100_000),
    "a piece twice": twice,
    "pieces that overlap": overlapping,
    "no pieces": at(*T, "pieces", value=[]),
    "pieces that are no list": at(*T, "pieces", value={"0": 1}),
    **{
        f"a piece at {where}": at(*P, "offset", value=where)
        for where in ([1, 0], [-1, 0], [2**63, 0], [0], [0, 0.0], "00")
    },
    **{
        f"a piece of {size}": at(*P, "size", value=size)
        for size in ([65, 33], [2**62, 33], [64], [64, -33], [63, 33], {})
    },
    "a piece in a file that is not listed": at(*P, "file", value="other.safetensors"),
    "a piece under a name that is not there": at(*P, "name", value="t99"),
    "a piece under the name of another": at(*P, "name", value="t0"),
    **{
        f"a dtype {dtype!r}": at(*T, "dtype", value=dtype)
        for dtype in ("F64", "I32", "BF16", "F128", "", ["F32"], None, 1)
    },
    **{
        f"{size} bytes of data": at("files", DATA, "bytes", value=size)
        for size in (2**60, 2**63, -1, 1.5, "19294", True, None)
    },
    "no hashes": at("files", DATA, "blocks", value=[]),
    "many hashes": at("files", DATA, "blocks", value=["0" * 16] * 1000),
    "hashes of other bytes": at("files", DATA, "blocks", value=["0" * 16]),
    "hashes that are none": at("files", DATA, "blocks", value=["../../etc/passwd"]),
    **{f"blocks of {size}": at("checksum", "block_bytes", value=size) for size in (0, 1, -4096, 2**62, 1e9, "x")},
    "another checksum": at("checksum", "algorithm", value="none"),
    **{
        f"counters {steps!r}": at("counters", "global_steps", value=steps)
        for steps in (-1, 2**70, 1e308, "7", None, [])
    },
    "counters that are NaN": at("counters", "global_steps", value=float("nan")),
    "counters that are infinite": at("counters", "global_steps", value=float("-inf")),
    **{f"{name} of another type": at(name, value=5) for name in ("files", "tensors", "counters", "mesh", "checksum")},
    **{
        f"no {name}": lambda content, name=name: content.pop(name)
        for name in ("files", "tensors", "counters", "tag", "id")
    },
    **{f"{name} as a list": at(name, value=[]) for name in ("client_state", "values", "tools", "plan")},
    "version 3": at("version", value=3),
    "version true": at("version", value=True),
    "version 2.0": at("version", value="2"),
    "another format": at("format", value="pickle"),
    "no ranks": at("mesh", "ranks", value=0),
    "a name of 10 MB": at("id", value="x" * 10_000_000),
}


@pytest.mark.parametrize("attack", MANIFESTS)
def test_a_forged_manifest_is_refused(step: Path, attack: str) -> None:
    content = read(step)
    MANIFESTS[attack](content)
    forge(step, content)
    refused(step, str(step))


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "a name twice": lambda text: text.replace(b'"tag":', b'"tag": "u", "tag":', 1),
    "a name twice, deep": lambda text: text.replace(b'"dtype":', b'"dtype": "F64", "dtype":', 1),
    "the hash twice": lambda text: text.replace(b'"format":', b'"xxh3_64": "0000000000000000", "format":', 1),
    "deep lists": lambda text: text.replace(
        b'"plan": ', b'"more": ' + b"[" * 100_000 + b"]" * 100_000 + b', "plan": ', 1
    ),
    "deep dicts": lambda text: text.replace(
        b'"plan": ', b'"m": ' + b'{"a":' * 50_000 + b"0" + b"}" * 50_000 + b', "plan": ', 1
    ),
    "a number of many digits": lambda text: text.replace(b'"version": 2', b'"version": ' + b"2" * 100_000, 1),
    "not UTF-8": lambda text: text.replace(b'"tag": "t"', b'"tag": "\xff\xfe"', 1),
    "a list": lambda text: b"[" + text + b"]",
    "more behind it": lambda text: text + b"{}",
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "nothing": lambda _text: b"",
    "null": lambda _text: b"null",
    "a pickle": lambda _text: b"cos\nsystem\n(S'touch ds-was-here'\ntR.",
}


@pytest.mark.parametrize("attack", TEXTS)
def test_a_manifest_of_strange_text_is_refused(step: Path, attack: str) -> None:
    text = (step / "manifest.json").read_bytes()
    changed = TEXTS[attack](text)
    (step / "manifest.json").write_bytes(sealed(changed) if b'"xxh3_64": "' in changed else changed)
    refused(step, "manifest.json")


def test_a_manifest_that_is_longer_than_memory_is_refused_unread(step: Path) -> None:
    os.truncate(step / "manifest.json", 1 << 40)
    refused(step, "manifest.json")


# --- the data ------------------------------------------------------------------------------------------------------


def entry(name: str, **changes: Any) -> Callable[[Content], None]:
    return lambda found: found[name].update(changes)


HEADERS: dict[str, Callable[[Content], Any]] = {
    "a dtype that is no name": entry("t0", dtype=["F64"]),
    "an unknown dtype": entry("t0", dtype="F128"),
    "another dtype of the same width": entry("t0", dtype="I64"),
    "another shape of as many": entry("t0", shape=[40, 33]),
    "a shape of 2**63": entry("t0", shape=[2**63]),
    "a shape of zero times 2**63": entry("t0", shape=[0, 2**63]),
    "a shape of fractions": entry("t0", shape=[1320.0]),
    "offsets behind the end": entry("t0", data_offsets=[10_000, 10_000 + 10_560]),
    "offsets backwards": entry("t0", data_offsets=[10_560, 0]),
    "offsets before the beginning": entry("t0", data_offsets=[-8, 10_552]),
    "offsets of 2**63": entry("t0", data_offsets=[2**63, 2**63 + 10_560]),
    "offsets that are no numbers": entry("t0", data_offsets=["0", "10560"]),
    "three offsets": entry("t0", data_offsets=[0, 1, 2]),
    "one tensor over another": lambda found: found["t1"].update(found["t0"]),
    "a tensor without a dtype": lambda found: found["t0"].pop("dtype"),
    "a tensor that is a number": lambda found: found.update(t0=5),
    "a tensor less": lambda found: found.pop("t0"),
}


@pytest.mark.parametrize("attack", HEADERS)
def test_a_forged_header_is_refused(step: Path, attack: str) -> None:
    found, rest = header(step)
    HEADERS[attack](found)
    forge_header(step, json.dumps(found).encode(), rest)
    refused(step, DATA)


@pytest.mark.parametrize("length", [2**60, 2**63, 2**64 - 1, 100_000_001, 20_000])
def test_a_header_longer_than_its_file_is_refused(step: Path, length: int) -> None:
    found, rest = header(step)
    forge_header(step, json.dumps(found).encode(), rest, length)
    refused(step, DATA, "header")


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"5", b"{" * 100_000, b"[" * 100_000, b"\xff", b'{"t0": {}, "t0": {}}']
)
def test_a_header_of_strange_text_is_refused(step: Path, text: bytes) -> None:
    forge_header(step, text, header(step)[1])
    refused(step, DATA)


# --- files that are no files ---------------------------------------------------------------------------------------


def made_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


SPECIAL: dict[str, Callable[[Path, Path], object]] = {
    "a link to a file outside": lambda path, outside: made_link(path, outside / "secret"),
    "a link to a device": lambda path, _: made_link(path, Path("/dev/zero")),
    "a link to itself": lambda path, _: made_link(path, path),
    "a link to nothing": lambda path, _: made_link(path, path.parent / "nowhere"),
    "a pipe": lambda path, _: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", ["t/manifest.json", f"t/{DATA}", "latest"])
@pytest.mark.parametrize("what", SPECIAL)
def test_what_is_no_regular_file_is_refused_and_never_waited_for(step: Path, name: str, what: str) -> None:
    SPECIAL[what](step.parent / name, step.parents[1] / "outside")
    refused(step, Path(name).name)


@pytest.mark.parametrize("name", ["t/manifest.json", f"t/{DATA}"])
def test_a_link_to_the_very_same_content_outside_is_refused(step: Path, name: str) -> None:
    path, moved = step.parent / name, step.parents[1] / "outside" / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    refused(step, "not a regular file")


def test_a_checkpoint_that_is_a_link_out_of_the_folder_is_refused(step: Path) -> None:
    moved = step.parents[1] / "outside" / "t"
    step.rename(moved)
    step.symlink_to(moved)
    refused(step, "symbolic link")


def test_a_checkpoint_that_is_a_link_within_the_folder_is_taken(step: Path) -> None:
    (step.parent / "best").symlink_to("t")
    assert load(step.parent, "best") == ("best", 1)


@pytest.mark.parametrize(
    "text", ["../outside", "/etc", "a\0b", "..", ".", "", "t\nt", "t/../t", "x" * 300, "é", "latest"]
)
def test_latest_names_nothing_outside(step: Path, text: str) -> None:
    (step.parent / "latest").write_text(text)
    refused(step, "latest")


def test_a_long_latest_is_refused_unread(step: Path) -> None:
    os.truncate(step.parent / "latest", 1 << 40)
    refused(step, "latest")


def test_the_same_tensors_are_there_without_an_attack(step: Path) -> None:
    forge(step, read(step))
    found, rest = header(step)
    forge_header(step, json.dumps(found).encode(), rest)
    assert load(step.parent) == ("t", 1)
