"""Disks that are full, read-only, slow or gone: the error says what and why, nothing is lost, training goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import ds_core
from ds_core.checkpoint.storage.folder import complete, leftovers
from ds_core.errors import CheckpointError
from ds_core.testing import run_ranks
from ds_core.testing.disks import Operation, WatchedDisk, failing_at
from ds_core.testing.saves import load, save, saver, stand_in


def count_changes(root: Path) -> int:
    disk = WatchedDisk(lambda _: None)
    save(root, "new", 2, disk=disk, keep_last=1)
    return disk.count


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_an_error_at_any_change_is_told_and_nothing_good_is_lost(tmp_path: Path, code: int) -> None:
    save(tmp_path / "base", "old", 1)
    shutil.copytree(tmp_path / "base", tmp_path / "clean")
    silent = []
    for number in range(count_changes(tmp_path / "clean")):
        root = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "base", root)
        disk = WatchedDisk(failing_at(number, code))
        try:
            save(root, "new", 2, disk=disk, keep_last=1)
            silent.append(number)  # the checkpoint is there, and older ones could not be deleted
            assert load(root) == ("new", 2)
        except CheckpointError as error:
            assert str(root) in str(error)
            assert os.strerror(code) in str(error)
        for tag in complete(root):
            load(root, tag)
        assert load(root) in {("old", 1), ("new", 2)}
        save(root, "next", 3)
        assert load(root) == ("next", 3)
        assert leftovers(root) == []
        shutil.rmtree(root)
    assert len(silent) < 6


def test_the_file_is_named_although_the_system_names_none(tmp_path: Path) -> None:
    for file in ("rank-00000.safetensors", "manifest.json", ".latest.tmp", ".owner.json.tmp"):

        def hook(done: Operation, file: str = file) -> None:
            if done.name == "write" and done.path.name == file:
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(CheckpointError, match="No space left on device") as told:
            save(tmp_path, "new", 2, disk=WatchedDisk(hook))
        assert file in str(told.value)


def limited(folder: str, limit_bytes: int) -> str:
    """A save under a limit of the kernel's on the length of files: writes come back short, and then fail."""
    root = Path(folder)
    save(root, "old", 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    told = "it was written"
    try:
        save(root, "new", 2)
    except CheckpointError as error:
        told = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load(root) == ("old", 1)
    save(root, "next", 3)
    return told


@pytest.mark.parametrize("limit_bytes", [8192, 10_000])
def test_a_limit_of_the_system_on_files_is_told(tmp_path: Path, limit_bytes: int) -> None:
    (told,) = run_ranks(limited, 1, str(tmp_path), limit_bytes, init=False)
    assert "rank-00000.safetensors" in told
    assert "File too large" in told
    assert load(tmp_path) == ("next", 3)
    assert leftovers(tmp_path) == []


SMALL_DISK = """
import errno, os, subprocess, sys
from pathlib import Path
from ds_core.errors import CheckpointError
from ds_core.testing.disks import WatchedDisk
from ds_core.testing.saves import load, save

root = Path(sys.argv[1])
def fill(done):
    if done.name == "write" and done.path.suffix == ".safetensors" and not (root / "other").exists():
        with (root / "other").open("wb") as file:
            try:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            except OSError:
                pass
save(root, "old", 1)
try:
    save(root, "new", 2, disk=WatchedDisk(fill))
except CheckpointError as error:
    print(error)
assert load(root) == ("old", 1)
(root / "other").unlink()
save(root, "next", 3)
assert load(root) == ("next", 3)
fill_up = (root / "other").open("wb")
fill_up.truncate(0)
os.posix_fallocate(fill_up.fileno(), 0, os.statvfs(root).f_bavail * os.statvfs(root).f_frsize - 65536)
try:
    save(root, "more", 4)
except CheckpointError as error:
    print(error)
fill_up.close()
(root / "other").unlink()
subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
try:
    save(root, "never", 5)
except CheckpointError as error:
    print(error)
assert load(root) == ("next", 3)
"""


def may_mount() -> bool:
    """Whether this system lets an ordinary user mount in a namespace of their own; many containers do not."""
    if shutil.which("unshare") is None:
        return False
    command = "mkdir -p $0 && mount -t tmpfs none $0"
    probe = subprocess.run(["unshare", "-rm", "sh", "-c", command, "/tmp"], capture_output=True, check=False)
    return probe.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="mounting in a user namespace is not allowed here")
def test_a_disk_that_is_really_full_and_one_that_is_really_read_only(tmp_path: Path) -> None:
    script, root = tmp_path / "script.py", tmp_path / "disk"
    script.write_text(SMALL_DISK)
    root.mkdir()
    command = f"mount -t tmpfs -o size=24m none {root} && exec {sys.executable} {script} {root}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    written, room, read_only = done.stdout.splitlines()
    assert "rank-00000.safetensors: [Errno 28] No space left on device" in written
    assert "has room for" in room
    assert "Read-only file system" in read_only
    assert not list(root.iterdir())


# --- in the background ---------------------------------------------------------------------------------------------


class Gate:
    """A hook that keeps writes of tensors waiting until it is opened, and remembers what was done."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.done: list[Operation] = []

    def __call__(self, operation: Operation) -> None:
        if operation.name == "write" and operation.path.suffix == ".safetensors":
            self.reached.set()
            self.opened.wait(60)
        self.done.append(operation)


def test_training_goes_on_while_a_slow_disk_writes_and_the_next_save_waits(tmp_path: Path) -> None:
    gate = Gate()
    writer = saver(WatchedDisk(gate))
    writer.save(stand_in(1), tmp_path, "one", {"number": 1})
    assert gate.reached.wait(30)
    assert not complete(tmp_path)  # it is being written, and this thread is free
    threading.Timer(0.05, gate.opened.set).start()
    writer.save(stand_in(2), tmp_path, "two", {"number": 2})
    writer.wait()
    order = [(done.name, (done.target or done.path).name) for done in gate.done]
    second = next(i for i, (name, path) in enumerate(order) if name == "make_folder" and path.startswith(".two."))
    assert order.index(("rename", "one")) < second
    assert load(tmp_path) == ("two", 2)


EXITING = """
import sys, time
from pathlib import Path
from ds_core.testing.disks import WatchedDisk
from ds_core.testing.saves import saver, stand_in

def slow(operation):
    time.sleep(0.02)

saver(WatchedDisk(slow)).save(stand_in(1), Path(sys.argv[1]), "t", {"number": 1})
sys.exit(7)
"""


def test_a_process_ends_when_its_checkpoint_is_on_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EXITING, str(tmp_path)], check=False, timeout=100)
    assert done.returncode == 7
    assert load(tmp_path) == ("t", 1)


@pytest.mark.parametrize("what", ["the working folder", "the whole folder"])
def test_a_folder_that_vanishes_while_it_is_written_is_told(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"

    def vanish(operation: Operation) -> None:
        if operation.name == "sync" and operation.path.suffix == ".safetensors":
            shutil.rmtree(root if what == "the whole folder" else operation.path.parent)

    save(root, "old", 1)
    with pytest.raises(CheckpointError, match=r"root/new.*No such file or directory"):
        save(root, "new", 2, disk=WatchedDisk(vanish))
    if what == "the working folder":
        assert load(root) == ("old", 1)
    save(root, "next", 3)
    assert load(root) == ("next", 3)
    assert leftovers(root) == []


# --- engines -------------------------------------------------------------------------------------------------------


def build() -> object:
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
    }
    return ds_core.initialize(model=nn.Linear(4, 3), config=config)[0]


def train(engine, steps: int) -> list[str]:
    """What steps were told; who catches it goes on with the next batch."""
    told = []
    while engine.global_steps < steps:
        generator = torch.Generator().manual_seed(2 * engine.micro_steps + engine.global_rank)
        engine.backward(engine(torch.randn(2, 4, generator=generator)).square().mean())
        try:
            engine.step()
        except CheckpointError as error:
            told.append(str(error))
    return told


def failing_once(folder: str, rank: int) -> tuple[list[str], bool, str]:
    """A save that fails on one rank, training on, and the save after it; what was told, and whether weights differ."""
    straight = build()
    train(straight, 6)
    engine = build()
    healthy = engine._saver.disk
    if engine.global_rank == rank:
        engine._saver.disk = WatchedDisk(failing_at(0, name="write", suffix=".safetensors"))
    engine.save_checkpoint(folder, tag="bad")
    engine._saver._pending.join()  # or the failure might be told steps later, which is as well
    told = train(engine, 3)
    engine._saver.disk = healthy
    engine.save_checkpoint(folder, tag="good")
    more = train(engine, 6)
    engine.wait_for_checkpoint()
    same = torch.equal(straight.module.weight, engine.module.weight)
    path, _ = build().load_checkpoint(folder)
    return [*told, *more], same, Path(path).name


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failed_write_is_told_once_on_every_rank_and_training_is_as_if_it_had_not_been(tmp_path, rank: int) -> None:
    for told, same, tag in run_ranks(failing_once, 2, str(tmp_path), rank):
        assert len(told) == 1
        assert "No space left on device" in told[0]
        assert f"rank-{rank:05d}.safetensors" in told[0]
        assert same
        assert tag == "good"


def told_apart(folder: str) -> list[str]:
    """One rank has been told of a failure by a step, the other has not: the next save must not wait for ever."""
    engine = build()
    if engine.global_rank == 1:
        engine._saver.disk = WatchedDisk(failing_at(0, name="write", suffix=".safetensors"))
    engine.save_checkpoint(folder, tag="bad")
    engine._saver._pending.join()
    told = []
    if engine.global_rank == 0:
        with pytest.raises(CheckpointError):
            engine.wait_for_checkpoint()
    for attempt in (lambda: engine.save_checkpoint(folder, tag="next"), lambda: engine.load_checkpoint(folder)):
        try:
            attempt()
            told.append("went well")
        except CheckpointError as error:
            told.append(str(error))
    return told


def test_ranks_of_which_one_was_told_of_a_failure_stay_together(tmp_path) -> None:
    for saved, loaded in run_ranks(told_apart, 2, str(tmp_path)):
        assert "rank 1 could not write the checkpoint before" in saved
        assert loaded == "went well"


def test_everything_is_closed_although_the_last_save_failed(tmp_path) -> None:
    engine = build()
    engine._saver.disk = WatchedDisk(failing_at(0, name="write", suffix=".safetensors"))
    engine.save_on_signal(tmp_path)
    watch = next(part for part in engine.parts if part.name == "preemption")
    engine.save_checkpoint(tmp_path, tag="bad")
    with pytest.raises(CheckpointError, match="No space left"):
        engine.destroy()
    assert watch._watch is None
