"""Saving while training goes on: what is saved, when failures are told, who waits for whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

import ds_core
from ds_core.checkpoint import CheckpointReader, Disk, complete, newest
from ds_core.checkpoint.storage.folder import OWNER
from ds_core.errors import CheckpointError
from ds_core.testing import RankDied, run_ranks


class HeldDisk(Disk):
    """Data reaches the disk only when the test lets it."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        assert self.gate.wait(30)
        return super().write(fd, view, offset)


class FullDisk(Disk):
    """Takes so many bytes, then none; a file that is deleted makes room again, unless others take it at once."""

    def __init__(self, room_bytes: int, *, stays_full: bool = False) -> None:
        self.room_bytes = room_bytes
        self._stays_full = stays_full

    def remove(self, path: Path) -> None:
        if path.suffix == ".safetensors" and not self._stays_full:
            self.room_bytes = 10_000
        super().remove(path)

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        self.room_bytes -= len(view)
        if self.room_bytes < 0:
            raise OSError(28, "No space left on device")
        return super().write(fd, view, offset)


def build(disk: Disk | None = None, **checkpoint):
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.1}},
        "checkpoint": checkpoint,
    }
    engine = ds_core.initialize(model=nn.Linear(6, 3), config=config)[0]
    if disk is not None:
        engine._saver.disk = disk
    return engine


def step(engine) -> None:
    engine.backward(engine(torch.ones(2, 6)).square().mean())
    engine.step()


def weights(engine) -> torch.Tensor:
    return engine.module.weight.detach().clone()


def saved(path: Path) -> torch.Tensor:
    return CheckpointReader(path).full("model/weight")


def let_go_later(disk: HeldDisk) -> None:
    threading.Timer(0.3, disk.gate.set).start()


def test_what_is_written_is_the_state_at_the_time_of_the_call(tmp_path):
    disk = HeldDisk()
    engine = build()
    step(engine)
    engine.save_checkpoint(tmp_path, tag="warm")
    engine.wait_for_checkpoint()
    engine._saver.disk = disk
    disk.gate.set()
    before = weights(engine)
    disk.gate.clear()
    threading.Timer(0.05, disk.gate.set).start()  # the folder's own note is written before the call returns
    engine.save_checkpoint(tmp_path, tag="t")
    for _ in range(3):
        step(engine)
    engine.wait_for_checkpoint()
    assert torch.equal(saved(tmp_path / "t"), before)
    assert not torch.equal(weights(engine), before)


def test_a_failure_is_told_by_the_next_step_once_and_training_goes_on(tmp_path):
    engine = build()
    engine.save_checkpoint(tmp_path, tag="good")
    engine.wait_for_checkpoint()
    engine._saver.disk = FullDisk(1000)
    engine.save_checkpoint(tmp_path, tag="bad")
    engine._saver._pending.join()
    before = weights(engine)
    engine.backward(engine(torch.ones(2, 6)).square().mean())
    with pytest.raises(CheckpointError, match=r"bad: rank 0 could not write .*rank-00000.safetensors: .*No space left"):
        engine.step()
    assert not torch.equal(weights(engine), before)  # the step is complete: who catches the error has lost nothing
    assert engine.global_steps == 1
    step(engine)
    assert engine.global_steps == 2
    assert newest(tmp_path) == "good"
    engine._saver.disk = Disk()
    engine.save_checkpoint(tmp_path, tag="better")
    engine.wait_for_checkpoint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["better", "good", "latest"]


@pytest.mark.parametrize("call", ["save_checkpoint", "load_checkpoint", "wait_for_checkpoint", "destroy"])
def test_a_failure_is_told_by_whatever_comes_next(tmp_path, call):
    engine = build(FullDisk(1000))
    engine.save_checkpoint(tmp_path, tag="bad")
    engine._saver._pending.join()
    arguments = [tmp_path] if call.endswith("_checkpoint") and call != "wait_for_checkpoint" else []
    with pytest.raises(CheckpointError, match="No space left"):
        getattr(engine, call)(*arguments)


def test_a_synchronous_save_fails_in_the_call_itself(tmp_path):
    engine = build(FullDisk(1000), asynchronous=False)
    with pytest.raises(CheckpointError, match="No space left"):
        engine.save_checkpoint(tmp_path, tag="bad")
    step(engine)


def test_too_little_room_is_found_before_anything_is_written(tmp_path):
    class Small(Disk):
        def free_bytes(self, path: Path) -> int:
            return 10_000

    engine = build(Small())
    with pytest.raises(CheckpointError, match=r"has room for 10,000 bytes and \d.*keep_last"):
        engine.save_checkpoint(tmp_path, tag="t")
    assert list(tmp_path.iterdir()) == []


def test_the_next_save_and_a_load_wait_for_the_last_one(tmp_path):
    disk = HeldDisk()
    disk.gate.set()
    engine = build(disk)
    engine.save_checkpoint(tmp_path, tag="a")
    engine.wait_for_checkpoint()
    other = build()
    let_go_later(disk)
    engine.save_checkpoint(tmp_path, tag="b")
    path, _ = other.load_checkpoint(tmp_path)  # of another engine of this process
    assert path == str(tmp_path / "b")
    engine.save_checkpoint(tmp_path, tag="c")
    assert set(complete(tmp_path)) >= {"a", "b"}
    engine.wait_for_checkpoint()


def test_another_process_that_writes_there_is_left_alone(tmp_path):
    living = psutil.Process(os.getppid())
    work = tmp_path / ".t.00ff.writing"
    work.mkdir()
    import json
    import socket

    who = {"host": socket.gethostname(), "pid": living.pid, "started": living.create_time()}
    (work / OWNER).write_text(json.dumps(who))
    engine = build()
    with pytest.raises(CheckpointError, match=rf"process {living.pid} is writing the checkpoint 't'"):
        engine.save_checkpoint(tmp_path, tag="u")
    (work / OWNER).write_text(json.dumps({**who, "started": 1.0}))  # another process had this number
    engine.save_checkpoint(tmp_path, tag="u")
    engine.wait_for_checkpoint()
    assert not work.exists()


PROGRAM = """
import sys, time, torch, ds_core
from torch import nn
from ds_core.checkpoint import Disk

class Slow(Disk):
    def sync(self, fd):
        time.sleep(0.2)
        super().sync(fd)

config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
engine = ds_core.initialize(model=nn.Linear(3, 3), config=config)[0]
engine._saver.disk = Slow()
engine.save_checkpoint(sys.argv[1], tag="t")
if sys.argv[2] == "raises":
    raise RuntimeError("training failed")
"""


@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_a_process_ends_only_when_its_checkpoint_is_on_disk(tmp_path, ending):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), ending], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (1 if ending == "raises" else 0), done.stderr
    assert newest(tmp_path) == "t"


def ranks_save(folder: str, dies: bool) -> str:
    import torch.distributed as dist

    engine = build()
    engine._saver.patience_s = 1.5
    step(engine)
    engine.save_checkpoint(folder, tag="good")
    engine.wait_for_checkpoint()
    if dies and dist.get_rank() == 1:

        class Deadly(Disk):
            def sync(self, fd: int) -> None:
                os.kill(os.getpid(), signal.SIGKILL)

        engine._saver.disk = Deadly()
    engine.save_checkpoint(folder, tag="next")
    began = time.monotonic()
    try:
        engine.wait_for_checkpoint()
    except CheckpointError as error:
        assert time.monotonic() - began < 20
        return str(error)
    return "written"


def test_a_rank_that_dies_is_named_and_the_last_checkpoint_stays(tmp_path):
    results = run_ranks(ranks_save, 2, str(tmp_path), True, dies=[1])
    assert isinstance(results[1], RankDied)
    assert "rank 1 showed no sign of life" in results[0]
    assert newest(tmp_path) == "good"


def ranks_fail(folder: str, failing: int, stays_full: bool = False) -> str:
    import torch.distributed as dist

    engine = build(FullDisk(1000, stays_full=stays_full) if dist.get_rank() == failing else None)
    engine.save_checkpoint(folder, tag="t")
    try:
        engine.wait_for_checkpoint()
    except CheckpointError as error:
        return str(error)
    return "written"


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_of_one_rank_is_told_on_all(tmp_path, failing):
    for message in run_ranks(ranks_fail, 3, str(tmp_path), failing):
        assert f"rank {failing} could not write" in message
        assert "No space left" in message
    assert newest(tmp_path) is None


def test_a_rank_that_cannot_even_say_why_it_failed_is_named(tmp_path):
    other, failed = run_ranks(ranks_fail, 2, str(tmp_path), 1, stays_full=True)
    assert "rank 1: it could not be written; that rank's own error and log say why" in other
    assert "No space left" in failed


def ranks_differ(folder: str) -> str:
    import torch.distributed as dist

    engine = build()
    client = {"x": nn.Linear(1, 1)} if dist.get_rank() == 1 else {}
    try:
        engine.save_checkpoint(folder, tag="t", client_state=client)
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_a_rank_with_values_that_cannot_be_written_fails_all(tmp_path):
    first, second = run_ranks(ranks_differ, 2, str(tmp_path))
    assert "rank 1 could not save: client_state['x'] (Linear) cannot be written as JSON" in first
    assert "client_state['x'] (Linear) cannot be written as JSON" in second
