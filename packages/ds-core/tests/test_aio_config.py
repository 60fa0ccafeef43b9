"""Every key of the ``aio`` section is set here, and what it changes is observed at the system calls."""

from __future__ import annotations

import threading
import types
from pathlib import Path

import pytest
import torch

from ds_core import _builtin
from ds_core.accelerator import Accelerator, Capability, HostAccelerator
from ds_core.aio import ThreadedIO, aligned_empty, make_io
from ds_core.aio.files import SystemCalls
from ds_core.config import Facts, load, resolve
from ds_core.errors import ConfigError
from ds_core.hooks import AcceleratorEntry, Availability, hookimpl
from ds_core.plugins import PluginManager

BLOCK = 4096
TIMEOUT_S = 30


def section(**keys):
    return resolve(load({"train_batch_size": 1, "aio": {"block_size": BLOCK, **keys}}, sections=()), Facts(1, 1))["aio"]


class Watched(SystemCalls):
    """Real writes that note their offsets and sizes, and meet `together` at a time before they go on."""

    def __init__(self, together: int = 1) -> None:
        self.sizes: list[int] = []
        self.groups: list[set[int]] = []
        self.most = 0
        self._inside: set[int] = set()
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(together, action=self._note, timeout=TIMEOUT_S)

    def _note(self) -> None:
        self.groups.append(set(self._inside))

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        with self._lock:
            self.sizes.append(len(view))
            self._inside.add(offset)
            self.most = max(self.most, len(self._inside))
        self._meeting.wait()
        done = super().write(fd, view, offset)
        with self._lock:
            self._inside.remove(offset)
        return done


def write(tmp_path: Path, calls: SystemCalls, blocks: int, **keys) -> None:
    io = make_io(HostAccelerator(), section(**keys), calls=calls)
    io.write(aligned_empty(blocks * BLOCK, torch.uint8).zero_(), tmp_path / "file", 0).wait()
    io.close()


@pytest.mark.parametrize("blocks", [1, 3])
def test_block_size_is_the_size_of_a_system_call(tmp_path, blocks):
    calls = Watched()
    write(tmp_path, calls, 12, block_size=blocks * BLOCK, queue_depth=1)
    assert calls.sizes == [blocks * BLOCK] * (12 // blocks)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_queue_depth_is_how_many_calls_are_under_way(tmp_path, depth):
    calls = Watched(together=depth)
    write(tmp_path, calls, 20, queue_depth=depth)
    assert calls.most == depth
    assert len(calls.groups) == 20 // depth


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_intra_op_parallelism_is_how_many_parts_are_moved_at_once(tmp_path, parts):
    calls = Watched(together=parts)
    write(tmp_path, calls, 8, queue_depth=1, intra_op_parallelism=parts)
    assert calls.groups[0] == {part * 8 // parts * BLOCK for part in range(parts)}


def test_thread_count_is_an_old_name_of_intra_op_parallelism(caplog):
    assert section(thread_count=3).intra_op_parallelism == 3
    assert "aio.thread_count" in caplog.text


class Held(SystemCalls):
    """Real writes, of which the first is held until the third has begun, or for `patience_s`."""

    def __init__(self, patience_s: float) -> None:
        self.was_overlapped = False
        self._patience_s = patience_s
        self._third = threading.Event()

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        if offset == 0:
            self.was_overlapped = self._third.wait(self._patience_s)
        if offset == 2 * BLOCK:
            self._third.set()
        return super().write(fd, view, offset)


def test_overlap_events_starts_a_block_when_another_one_ends(tmp_path):
    calls = Held(TIMEOUT_S)
    write(tmp_path, calls, 4, queue_depth=2, overlap_events=True)
    assert calls.was_overlapped


def test_without_overlap_events_blocks_go_in_batches(tmp_path):
    calls = Held(0.3)
    write(tmp_path, calls, 4, queue_depth=2, overlap_events=False)
    assert not calls.was_overlapped
    calls = Watched(together=2)
    write(tmp_path, calls, 6, queue_depth=2, overlap_events=False)
    assert calls.groups == [{0, BLOCK}, {2 * BLOCK, 3 * BLOCK}, {4 * BLOCK, 5 * BLOCK}]
    assert (tmp_path / "file").stat().st_size == 6 * BLOCK


def test_use_gds_needs_an_accelerator_that_brings_it():
    with pytest.raises(ConfigError, match=r"aio\.use_gds is true, and accelerator reference brings no engine"):
        make_io(HostAccelerator(), section(use_gds=True))


class Engine(ThreadedIO):
    pass


class Fast(Accelerator):
    """A device with an engine of its own, except for what `cannot` says."""

    name = "fast"
    device_type = "cpu"
    capabilities = frozenset({Capability.ASYNC_IO})
    cannot = False

    def async_io(self, config):
        return None if self.cannot else Engine(block_size=config.block_size)


def test_an_accelerators_own_engine_is_taken():
    io = make_io(Fast(), section(use_gds=True))
    assert type(io) is Engine
    io.close()


def wheel(host: Accelerator | None, *, broken: bool = False) -> PluginManager:
    """Plugins of ds-core and, where `host` is given, of a wheel that brings it as the cpu."""

    def ds_accelerators():
        return [AcceleratorEntry("cpu", lambda: Availability(True, "", 1), "none:none", priority=10, is_floor=True)]

    made = PluginManager(entry_points=[], environ={})
    made.add_module(_builtin, "ds-core:core", "1.0")
    if host is not None:
        module = types.ModuleType("wheel")
        module.__file__ = "/wheel.py"
        vars(module).update(DS_HOOK_API=(1, 0), ds_accelerators=hookimpl(ds_accelerators))
        made.add_module(module, "ds-accel-cpu:cpu", "1.0")
        if not broken:
            made.memo["the host's accelerator"] = {"made": host}
    return made


def test_threads_do_what_no_accelerators_engine_can():
    fast = Fast()
    fast.cannot = True
    io = make_io(fast, section(), manager=wheel(None))
    assert type(io) is ThreadedIO
    io.close()
    with pytest.raises(ConfigError, match="accelerator fast"):
        make_io(fast, section(use_gds=True))


class Claims(Accelerator):
    name = "claims"
    capabilities = frozenset({Capability.ASYNC_IO})


def test_an_accelerator_without_an_engine_gets_the_hosts():
    for accelerator in (Claims(), Accelerator()):
        io = make_io(accelerator, section(), manager=wheel(Fast()))
        assert type(io) is Engine
        io.close()


def test_a_broken_host_wheel_costs_its_engine_and_one_warning(caplog):
    plugins = wheel(Fast(), broken=True)
    for _ in range(2):
        io = make_io(Claims(), section(), manager=plugins)
        assert type(io) is ThreadedIO
        io.close()
    assert "could not be made" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("block_size", 5000, "aio.block_size must be a multiple of 4096, got 5000"),
        ("block_size", 0, "aio.block_size must be at least 4096, got 0"),
        ("queue_depth", 0, "aio.queue_depth must be at least 1, got 0"),
        ("intra_op_parallelism", 0, "aio.intra_op_parallelism must be at least 1, got 0"),
        ("single_submit", 1, "aio.single_submit must be true or false, got 1"),
    ],
)
def test_values_that_cannot_be_served_are_refused(key, value, words):
    with pytest.raises(ConfigError) as caught:
        section(**{key: value})
    assert str(caught.value).startswith(words)
