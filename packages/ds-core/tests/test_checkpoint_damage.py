"""A byte that changed, a file that is missing or cut: refused by name, nothing is touched, an older one offered."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import ds_core
from ds_core.errors import CheckpointError
from ds_core.testing import run_ranks
from ds_core.testing.saves import load, save

DATA = "rank-00000.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two checkpoints, ``old`` and ``new``."""
    save(tmp_path, "old", 1)
    save(tmp_path, "new", 2)
    return tmp_path


def refused(root: Path, path: Path, content: bytes | None) -> str:
    """The message of a load while `path` has this content (None: is not there); the file is put back."""
    before, times = path.read_bytes(), path.stat()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # rot does not change times
    try:
        found = load(root)
    except CheckpointError as error:
        return str(error)
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return f"not refused: found {found}"


def flipped(content: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def wrong(messages: Iterator[tuple[str, str]], *parts: str) -> list[str]:
    """Which messages lack one of the parts, with what was done."""
    return [f"{what}: {message}" for what, message in messages if not all(part in message for part in parts)]


@pytest.mark.parametrize("bit", [0, 7])
def test_every_byte_of_the_manifest_counts(root: Path, bit: int) -> None:
    path = root / "new" / "manifest.json"
    content = path.read_bytes()
    told = ((str(place), refused(root, path, flipped(content, place, bit))) for place in range(len(content)))
    assert wrong(told, str(root / "new"), "load it with tag='old'") == []


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_latest_counts(root: Path, bit: int) -> None:
    path = root / "latest"
    told = ((str(place), refused(root, path, flipped(b"new", place, bit))) for place in range(3))
    assert wrong(told, str(path), "load it with tag='new'") == []


def test_every_byte_of_the_header_and_some_of_the_tensors_count(root: Path) -> None:
    path = root / "new" / DATA
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(header), *range(header, len(content), 61), len(content) - 1]
    told = ((str(place), refused(root, path, flipped(content, place, place % 8))) for place in places)
    assert wrong(told, str(root / "new"), f"{DATA} is not what was written") == []


def cuts(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    yield "missing", None
    for length in (0, 1, 7, 8, 9, len(content) // 2, len(content) - 1):
        yield f"cut to {length}", content[:length]
    yield "longer", content + b"\0"


@pytest.mark.parametrize("name", ["manifest.json", DATA])
def test_a_file_that_is_missing_cut_or_longer_is_named(root: Path, name: str) -> None:
    path = root / "new" / name
    told = ((what, refused(root, path, content)) for what, content in cuts(path.read_bytes()))
    assert wrong(told, str(root / "new"), name, "load it with tag='old'") == []


def test_the_one_that_is_offered_loads(root: Path) -> None:
    (root / "new" / DATA).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"load it with tag='old'"):
        load(root)
    assert load(root, "old") == ("old", 1)


def test_without_latest_the_newest_is_taken(root: Path) -> None:
    (root / "latest").unlink()
    assert load(root) == ("new", 2)


def test_a_folder_in_place_of_a_file_is_named(root: Path) -> None:
    for name in ("manifest.json", DATA):
        path = root / "new" / name
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        with pytest.raises(CheckpointError, match=rf"{name}.*load it with tag='old'"):
            load(root)
        path.rmdir()
        path.write_bytes(content)


# --- engines -------------------------------------------------------------------------------------------------------


def build():
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 20}},
        "seed": 5,
    }
    return ds_core.initialize(model=nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), config=config)[0]


def train(engine, steps: int) -> None:
    for _ in range(steps):
        engine.backward(engine(torch.randn(2, 4)).square().mean())
        engine.step()


def everything(engine) -> dict[str, object]:
    """All that a load could touch, comparable."""
    states = [state for _, state in sorted(engine.optimizer.state.items(), key=lambda item: item[0].shape)]
    return {
        "weights": [p.detach().clone().tolist() for p in engine.module.parameters()],
        "states": [{k: v.tolist() if torch.is_tensor(v) else v for k, v in state.items()} for state in states],
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups],
        "counters": engine.counters(),
        "schedule": engine.lr_scheduler.state_dict(),
        "random": torch.get_rng_state().tolist(),
    }


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of a tensor": lambda step: flip_file(step / DATA, -3),
    "a bit of the header": lambda step: flip_file(step / DATA, 20),
    "a bit of the manifest": lambda step: flip_file(step / "manifest.json", 900),
    "no data": lambda step: (step / DATA).unlink(),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "half of the data": lambda step: os.truncate(step / DATA, 200),
    "a manifest of something else": lambda step: (step / "manifest.json").write_text(json.dumps({"format": "x"})),
}


def flip_file(path: Path, place: int) -> None:
    content = path.read_bytes()
    path.write_bytes(flipped(content, place % len(content), 1))


@pytest.mark.parametrize("what", DAMAGES)
def test_an_engine_that_refuses_a_checkpoint_is_as_it_was_and_takes_the_older_one(tmp_path: Path, what: str) -> None:
    engine = build()
    train(engine, 1)
    engine.save_checkpoint(tmp_path)
    engine.wait_for_checkpoint()
    older = everything(engine)
    train(engine, 1)
    engine.save_checkpoint(tmp_path)
    engine.wait_for_checkpoint()
    DAMAGES[what](tmp_path / "global_step2")
    other = build()
    train(other, 4)
    before = everything(other)
    with pytest.raises(CheckpointError, match=r"global_step2.*load it with tag='global_step1'"):
        other.load_checkpoint(tmp_path)
    assert everything(other) == before
    other.load_checkpoint(tmp_path, tag="global_step1")
    assert everything(other) == older


def both_refuse(folder: str) -> tuple[str, bool]:
    engine = build()
    train(engine, 1)
    engine.save_checkpoint(folder)
    engine.wait_for_checkpoint()
    if engine.global_rank == 0:
        flip_file(Path(folder) / "global_step1" / "rank-00001.safetensors", -1)
    ds_core.comm.barrier()
    before = everything(engine)
    with pytest.raises(CheckpointError) as refusal:
        engine.load_checkpoint(folder)
    return str(refusal.value), everything(engine) == before


def test_damage_that_one_rank_finds_is_refused_by_all(tmp_path: Path) -> None:
    (first, first_same), (second, second_same) = run_ranks(both_refuse, 2, str(tmp_path))
    assert "rank-00001.safetensors is not what was written" in first
    assert first == second
    assert first_same
    assert second_same
