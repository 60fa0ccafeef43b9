"""What every engine for files promises, asked of the threads and, where its wheel is installed, of io_uring."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_core.aio import ALIGNMENT, AsyncIO, aligned_empty
from ds_core.aio.files import O_DIRECT, SystemCalls
from ds_core.errors import OffloadError
from ds_core.testing.file_engines import KINDS, file_engine

BLOCK = 2 * ALIGNMENT


@pytest.fixture(scope="module", params=KINDS)
def engine(request):
    found = file_engine(request.param)
    if found is None:
        pytest.skip("no installed wheel brings an engine of its own that this kernel allows")
    return partial(found, block_size=BLOCK)


@pytest.fixture
def make(engine):
    made = []

    def one(**settings) -> AsyncIO:
        made.append(engine(**settings))
        return made[-1]

    yield one
    for io in made:
        io.close()


class Recorded(SystemCalls):
    """The real calls, noted; `refuses` gives the errno of those that fail, `longest` cuts them short."""

    def __init__(self, refuses=lambda what, flags, offset: None, longest: int | None = None) -> None:
        self.notes: list[tuple[str, bool, int, int]] = []
        self.opened = self.closed = 0
        self._refuses = refuses
        self._longest = longest

    def _check(self, what: str, flags: int, offset: int) -> None:
        code = self._refuses(what, flags, offset)
        if code:
            raise OSError(code, os.strerror(code))

    def open(self, path: Path, flags: int) -> int:
        self._check("open", flags, 0)
        fd = super().open(path, flags)
        self.opened += 1
        return fd

    def close(self, fd: int) -> None:
        self.closed += 1
        super().close(fd)

    def before(self, fd: int, offset: int, nbytes: int, *, writes: bool) -> int:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        what = "write" if writes else "read"
        self._check(what, flags, offset)
        self.notes.append((what, bool(flags & O_DIRECT), offset, nbytes))
        return min(nbytes, self._longest or nbytes)


def random_bytes(numel: int, seed: int = 0) -> torch.Tensor:
    tensor = aligned_empty(numel, torch.uint8)
    return tensor.random_(0, 256, generator=torch.Generator().manual_seed(seed))


def no_direct(what: str, flags: int, offset: int) -> int | None:
    return errno.EINVAL if what == "open" and flags & O_DIRECT else None


def no_direct_blocks(what: str, flags: int, offset: int) -> int | None:
    return errno.EINVAL if what != "open" and flags & O_DIRECT else None


@pytest.mark.parametrize("refuses", [None, no_direct, no_direct_blocks], ids=["direct", "cached", "refused late"])
@given(
    nbytes=st.sampled_from([0, 1, ALIGNMENT, 3 * BLOCK]) | st.integers(0, 5 * BLOCK),
    offset=st.sampled_from([0, ALIGNMENT]) | st.integers(0, 2 * BLOCK),
    skew=st.sampled_from([0, 1, 64]),
    lanes=st.integers(1, 3),
    longest=st.sampled_from([None, ALIGNMENT]),
)
def test_bytes_come_back_and_neighbours_stay(tmp_path_factory, engine, refuses, nbytes, offset, skew, lanes, longest):
    path = tmp_path_factory.mktemp("io") / "file"
    before = bytes(random_bytes(offset + nbytes + 100, seed=1).tolist())
    path.write_bytes(before)
    calls = Recorded(refuses or (lambda *_: None), longest)
    io = engine(queue_depth=3, intra_op_parallelism=lanes, calls=calls)
    tensor = random_bytes(nbytes + skew)[skew:]
    io.write(tensor, path, offset).wait()
    found = path.read_bytes()
    assert found[:offset] + found[offset + nbytes :] == before[:offset] + before[offset + nbytes :]
    whole = torch.full((skew + nbytes + 8,), 7, dtype=torch.uint8)
    io.read(whole[skew : skew + nbytes], path, offset).wait()
    assert torch.equal(whole[skew : skew + nbytes], tensor)
    assert (whole[:skew].tolist(), whole[skew + nbytes :].tolist()) == ([7] * skew, [7] * 8)
    io.close()
    assert calls.opened == calls.closed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_any_dtype_and_shape_comes_back(tmp_path, make, dtype):
    tensor = torch.randn(13, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.zeros_like(tensor)
    io = make()
    io.write(tensor, tmp_path / "file", 24).wait()
    io.read(out, tmp_path / "file", 24).wait()
    assert torch.equal(out, tensor)


def test_aligned_memory_is_moved_without_the_page_cache(tmp_path, make):
    calls = Recorded()
    io = make(calls=calls)
    try:
        os.close(os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT | O_DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary folder does not take O_DIRECT")
    io.write(random_bytes(3 * BLOCK), tmp_path / "file", ALIGNMENT).wait()
    io.read(aligned_empty(3 * BLOCK, torch.uint8), tmp_path / "file", ALIGNMENT).wait()
    assert len(calls.notes) == 6
    assert all(is_direct for _, is_direct, _, _ in calls.notes)


def test_a_directory_without_direct_io_is_said_once(tmp_path, make, caplog):
    calls = Recorded(no_direct)
    io = make(calls=calls)
    for name in ("one", "two"):
        io.write(random_bytes(BLOCK), tmp_path / name, 0).wait()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert str(tmp_path) in lines[0]
    assert "O_DIRECT" in lines[0]


def test_many_requests_are_under_way_at_once(tmp_path, make):
    io = make(intra_op_parallelism=2)
    tensors = [random_bytes(BLOCK * 2 + 5 * index, seed=index) for index in range(40)]
    offsets = [index * 8 * ALIGNMENT for index in range(40)]
    for handle in [io.write(t, tmp_path / "file", at) for t, at in zip(tensors, offsets, strict=True)]:
        handle.wait()
    outs = [torch.zeros_like(tensor) for tensor in tensors]
    for handle in [io.read(t, tmp_path / "file", at) for t, at in zip(outs, offsets, strict=True)]:
        handle.wait()
    assert all(torch.equal(a, b) for a, b in zip(tensors, outs, strict=True))


def test_a_missing_file_is_named_with_offset_size_and_reason(tmp_path, make):
    handle = make().read(torch.zeros(5), tmp_path / "none", 12)
    with pytest.raises(OffloadError, match=r"reading 20 bytes at offset 12 of .*none failed: .*ENOENT, No such file"):
        handle.wait()


def test_too_many_open_files_fail_the_request_and_not_the_engine(tmp_path, make):
    opened = []

    def no_second(what, flags, offset):
        if what == "open":
            opened.append(flags)
            return errno.EMFILE if len(opened) == 2 else None
        return None

    calls = Recorded(no_second)
    io = make(calls=calls)
    tensor = random_bytes(BLOCK + 5)  # a whole block past the page cache, and a ragged end through it
    with pytest.raises(OffloadError, match="EMFILE, Too many open files"):
        io.write(tensor, tmp_path / "file", 0).wait()
    io.write(tensor, tmp_path / "file", 0).wait()
    assert (tmp_path / "file").read_bytes() == bytes(tensor.tolist())
    assert calls.opened == calls.closed


def test_a_file_that_ends_early_is_an_error(tmp_path, make):
    (tmp_path / "short").write_bytes(bytes(10_000))
    for out in (aligned_empty(3 * BLOCK, torch.uint8), torch.zeros(20_001, dtype=torch.uint8)[1:]):
        with pytest.raises(OffloadError, match="the file ends at byte 10000"):
            make().read(out, tmp_path / "short", 0).wait()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_block_fails_its_request_only(tmp_path, make, code):
    calls = Recorded(lambda what, flags, offset: code if what == "write" and offset == 5 * BLOCK else None)
    io = make(calls=calls)
    fine, broken = random_bytes(BLOCK), random_bytes(4 * BLOCK)
    handles = [io.write(fine, tmp_path / "file", 0), io.write(broken, tmp_path / "file", 4 * BLOCK)]
    handles[0].wait()
    name = errno.errorcode[code]
    for _ in range(2):
        with pytest.raises(
            OffloadError, match=f"offset {4 * BLOCK} of .*file failed: {name}, .* at offset {5 * BLOCK}"
        ):
            handles[1].wait()
    out = aligned_empty(BLOCK, torch.uint8)
    io.read(out, tmp_path / "file", 0).wait()
    assert torch.equal(out, fine)
    assert calls.opened == calls.closed


def test_a_full_device_is_reported(make):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OffloadError, match="ENOSPC, No space left on device"):
        make().write(random_bytes(BLOCK), Path("/dev/full"), 0).wait()


def test_after_a_failure_the_rest_of_the_request_is_not_tried(tmp_path, make):
    calls = Recorded(lambda what, flags, offset: errno.EIO if what == "write" and offset == 0 else None)
    io = make(calls=calls, queue_depth=1)
    with pytest.raises(OffloadError):
        io.write(random_bytes(50 * BLOCK), tmp_path / "file", 0).wait()
    assert calls.notes == []


def test_a_failure_nobody_waited_for_is_logged_at_close(tmp_path, make, caplog):
    io = make()
    io.read(torch.zeros(5), tmp_path / "none", 0)
    io.close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ENOENT" in caplog.text


def test_close_waits_for_what_is_under_way(tmp_path, make):
    io = make(queue_depth=1)
    tensor = random_bytes(200 * BLOCK)
    io.write(tensor, tmp_path / "file", 0)
    io.close()
    assert (tmp_path / "file").read_bytes() == bytes(tensor.tolist())
    with pytest.raises(OffloadError, match="after close"):
        io.read(tensor, tmp_path / "file", 0)


def threads() -> set[str]:
    """Names of this process's I/O threads, those Python does not know included."""
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    names |= {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith(("ds-aio", "ds-uring"))}


def test_a_forgotten_engine_leaves_no_thread(tmp_path, engine):
    before = threads()
    io = engine()
    io.write(random_bytes(8 * BLOCK), tmp_path / "file", 0).wait()
    assert threads() - before
    del io
    gc.collect()
    assert threads() <= before


def test_a_program_that_forgets_to_close_ends(tmp_path, engine):
    module, name = engine.func.__module__, engine.func.__name__
    program = (
        f"import sys, torch; from pathlib import Path; from {module} import {name}\n"
        f"io = {name}(); io.write(torch.ones(1 << 20), Path(sys.argv[1]), 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "file"], timeout=60, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "file").stat().st_size == 4 << 20


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_to_make_its_own(tmp_path, make):
    io = make()
    io.write(torch.ones(3), tmp_path / "file", 0).wait()
    child = os.fork()
    if child == 0:
        try:
            io.read(torch.zeros(3), tmp_path / "file", 0)
        except OffloadError:
            io.close()
            del io
            gc.collect()
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    io.write(torch.ones(3), tmp_path / "file", 0).wait()  # the parent's goes on


@pytest.mark.parametrize("settings", [{"block_size": 1000}, {"block_size": 0}, {"queue_depth": 0}])
def test_settings_that_cannot_work_are_refused(make, settings):
    with pytest.raises(OffloadError, match=next(iter(settings))):
        make(**settings)


def test_a_negative_offset_is_refused(tmp_path, make):
    with pytest.raises(OffloadError, match="offset_bytes must be at least 0, got -1"):
        make().write(torch.zeros(3), tmp_path / "file", -1)
