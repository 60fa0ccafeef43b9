from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_core.aio import ALIGNMENT, SwapStore, ThreadedIO, aligned_empty
from ds_core.aio.files import SystemCalls
from ds_core.errors import OffloadError
from ds_core.testing.file_engines import KINDS, file_engine

SETTING = "zero_optimization.offload_optimizer.nvme_path"


class Broken(SystemCalls):
    """Real calls, but those at some offsets fail, `code` by offset and kind."""

    def __init__(self) -> None:
        self.codes: dict[tuple[str, int], int] = {}

    def _check(self, what: str, offset: int) -> None:
        code = self.codes.get((what, offset))
        if code:
            raise OSError(code, os.strerror(code))

    def before(self, fd: int, offset: int, nbytes: int, *, writes: bool) -> int:
        self._check("write" if writes else "read", offset)
        return nbytes


class Counted(ThreadedIO):
    """Counts requests."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets: list[int] = []

    def read(self, tensor, path, offset_bytes):
        self.offsets.append(offset_bytes)
        return super().read(tensor, path, offset_bytes)


@pytest.fixture
def calls():
    return Broken()


@pytest.fixture(scope="module", params=KINDS)
def engine(request):
    found = file_engine(request.param)
    if found is None:
        pytest.skip("no installed wheel brings an engine of its own that this kernel allows")
    return found


@pytest.fixture
def io(calls, engine):
    made = engine(calls=calls)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path, io):
    made = SwapStore(tmp_path, 2, io, buffer_count=3)
    yield made
    made.close()


def filled(value: float, numel: int = 3000) -> torch.Tensor:
    return torch.full((numel,), float(value))


@given(
    numels=st.lists(st.integers(0, 5000), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64, torch.int8]),
    aligned=st.booleans(),
)
def test_tensors_of_any_size_and_dtype_come_back(tmp_path_factory, engine, numels, dtype, aligned):
    io = engine(block_size=ALIGNMENT, intra_op_parallelism=2)
    store = SwapStore(tmp_path_factory.mktemp("swap"), 0, io, buffer_count=1)
    store.reserve({str(index): numel * dtype.itemsize for index, numel in enumerate(numels)})
    tensors = []
    for numel in numels:
        values = torch.randn(numel, generator=torch.Generator().manual_seed(numel)).mul(50).to(dtype)
        tensors.append(aligned_empty(numel, dtype).copy_(values) if aligned else values)
    for index in reversed(range(len(numels))):
        store.put(str(index), tensors[index])
    outs = [torch.zeros_like(tensor) for tensor in tensors]
    for handle in [store.get(str(index), out) for index, out in enumerate(outs)]:
        handle.wait()
    assert all(torch.equal(a, b) for a, b in zip(tensors, outs, strict=True))
    store.close()
    io.close()


def test_slots_are_on_block_boundaries_in_the_order_reserved(store):
    store.reserve({"a": 1, "b": ALIGNMENT, "c": ALIGNMENT + 1})
    store.reserve({"d": 5})
    assert [store.slot(name).offset_bytes // ALIGNMENT for name in "abcd"] == [0, 1, 2, 4]
    assert store.nbytes == 5 * ALIGNMENT == store.path.stat().st_size


def test_reserved_room_is_really_taken(store):
    store.reserve({"a": 100 * ALIGNMENT})
    assert store.path.stat().st_blocks * 512 >= 100 * ALIGNMENT


def test_states_of_one_tile_come_in_one_read(tmp_path):
    io = Counted()
    store = SwapStore(tmp_path, 0, io, buffer_count=2)
    store.reserve({f"{tile}.{state}": 4000 for tile in range(3) for state in ("master", "m", "v")})
    names = ["1.master", "1.m", "1.v"]
    buffer = aligned_empty(store.span_bytes(names), torch.uint8)
    for value, view in enumerate(store.views(names, buffer, torch.float32)):
        assert view.shape == (1000,)
        view.fill_(value)
    store.put_adjacent(names, buffer).wait()
    out = aligned_empty(store.span_bytes(names), torch.uint8)
    store.get_adjacent(names, out).wait()
    assert [view.unique().tolist() for view in store.views(names, out, torch.float32)] == [[0.0], [1.0], [2.0]]
    assert io.offsets == [3 * ALIGNMENT]
    one = torch.zeros(1000)
    store.get("1.v", one).wait()
    assert one.unique().tolist() == [2.0]
    store.close()
    io.close()


def test_tensors_moved_together_must_be_neighbours(store):
    store.reserve({"a": 5, "b": 5, "c": 5})
    for names in (["a", "c"], ["b", "a"], []):
        with pytest.raises(OffloadError, match="side by side"):
            store.span_bytes(names)


def test_a_fetch_waits_for_the_put_before_it(store):
    store.reserve({"a": 4_000_000})
    for value in range(5):
        store.put("a", filled(value, 1_000_000))
        out = torch.empty(1_000_000)
        store.get("a", out).wait()
        assert out.unique().tolist() == [value]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_put_names_everything_and_leaves_the_others_readable(store, calls, code):
    store.reserve(dict.fromkeys("abc", 12_000))
    for value, name in enumerate("abc"):
        store.put(name, filled(value)).wait()
    at = store.slot("b").offset_bytes
    calls.codes["write", at] = code
    handle = store.put("b", filled(9.0))
    words = rf"storing b: writing \d+ bytes at offset {at} of {store.path} failed: {errno.errorcode[code]}.*{SETTING}"
    with pytest.raises(OffloadError, match=words):
        handle.wait()
    for value, name in ((0, "a"), (2, "c")):
        out = torch.empty(3000)
        store.get(name, out).wait()
        assert out.unique().tolist() == [value]
    with pytest.raises(OffloadError, match="b cannot be fetched: it is lost, since writing it failed"):
        store.get("b", torch.empty(3000))
    calls.codes.clear()
    store.put("b", filled(4.0)).wait()
    out = torch.empty(3000)
    store.get("b", out).wait()
    assert out.unique().tolist() == [4.0]


def test_a_failed_fetch_can_be_tried_again(store, calls):
    store.reserve({"a": 12_000})
    store.put("a", filled(1.0)).wait()
    calls.codes["read", 0] = errno.EIO
    with pytest.raises(OffloadError, match=r"fetching a: .*EIO"):
        store.get("a", torch.empty(3000)).wait()
    calls.codes.clear()
    out = torch.empty(3000)
    store.get("a", out).wait()
    assert out.unique().tolist() == [1.0]


def test_a_failure_nobody_waited_for_is_raised_by_the_next_use(store, calls):
    store.reserve({"a": 12_000})
    calls.codes["write", 0] = errno.EIO
    store.put("a", filled(1.0))
    with pytest.raises(OffloadError, match="EIO"):
        store.get("a", torch.empty(3000))


def test_a_failure_nobody_waited_for_is_logged_at_close(store, calls, caplog):
    store.reserve({"a": 12_000})
    calls.codes["write", 0] = errno.EIO
    store.put("a", filled(1.0))
    store.close()
    assert "storing a" in caplog.text


def test_misuse_is_named(store):
    store.reserve({"state": 12_000})
    with pytest.raises(OffloadError, match="state cannot be fetched: it was never written"):
        store.get("state", torch.empty(3000))
    with pytest.raises(OffloadError, match=r"no tensor 'stat'.* Did you mean 'state'"):
        store.put("stat", filled(1.0))
    with pytest.raises(OffloadError, match=r"takes a 1-D tensor of 12000 bytes, got shape \(10,\) of 40 bytes"):
        store.put("state", filled(1.0, 10))
    with pytest.raises(OffloadError, match=r"strides \(2,\)"):
        store.put("state", filled(1.0, 6000)[::2])
    with pytest.raises(OffloadError, match="has state already"):
        store.reserve({"state": 1})


def test_a_closed_store_has_no_file_and_says_so(store, tmp_path):
    store.reserve({"a": 10})
    store.close()
    store.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OffloadError, match="closed"):
        store.reserve({"b": 10})


def test_pools_have_the_buffers_asked_for_and_name_the_setting(store):
    pool = store.buffer_pool(10, torch.float32)
    for _ in range(3):
        pool.acquire()
    with pytest.raises(OffloadError, match=r"zero_optimization\.offload_optimizer\.buffer_count is 3"):
        pool.acquire()


def cannot_allocate(fd: int, offset: int, nbytes: int) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_without_fallocate_the_file_still_works(tmp_path, io):
    store = SwapStore(tmp_path, 0, io, buffer_count=1, allocate=cannot_allocate)
    store.reserve({"a": 12_000})
    assert store.path.stat().st_size == store.nbytes
    store.put("a", filled(2.0)).wait()
    out = torch.empty(3000)
    store.get("a", out).wait()
    assert out.unique().tolist() == [2.0]
    store.close()


def test_without_fallocate_the_free_room_is_compared(tmp_path, io):
    store = SwapStore(tmp_path, 0, io, buffer_count=1, allocate=cannot_allocate)
    free = os.statvfs(tmp_path)
    needed = 2 * free.f_blocks * free.f_frsize
    with pytest.raises(OffloadError, match=rf"{SETTING} has too little room: .*\.bin needs \d+ bytes more and \d+ are"):
        store.reserve({"a": needed})
    assert store.path.stat().st_size == 0
    store.close()


def test_room_that_was_taken_in_vain_is_given_back(tmp_path, io):
    def runs_full(fd: int, offset: int, nbytes: int) -> None:
        if nbytes > 10 * ALIGNMENT:
            os.ftruncate(fd, offset + 10 * ALIGNMENT)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(fd, offset + nbytes)

    store = SwapStore(tmp_path, 0, io, buffer_count=1, allocate=runs_full)
    store.reserve({"a": ALIGNMENT})
    with pytest.raises(OffloadError, match="too little room"):
        store.reserve({"b": 100 * ALIGNMENT})
    assert store.path.stat().st_size == store.nbytes == ALIGNMENT
    store.close()


LIMITED = """
import os, resource, sys, torch
from pathlib import Path
from ds_core.aio import SwapStore, ThreadedIO
from ds_core.errors import OffloadError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
io = ThreadedIO()
store = SwapStore(Path(sys.argv[1]), 0, io, buffer_count=1)
store.reserve({"a": 400_000})
try:
    store.reserve({"b": 1 << 20})
except OffloadError as error:
    print(error)
store.put("a", torch.ones(100_000)).wait()
print(store.path.stat().st_size)
store.close()
io.close()
"""


def test_too_little_room_shows_when_it_is_reserved(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    error, size = done.stdout.splitlines()
    assert error.startswith(f"{SETTING} has too little room: ")
    assert "needs 1048576 bytes more and" in error
    assert "are free (File too large)" in error
    assert int(size) == 98 * ALIGNMENT  # what was reserved before stays as it is


FULL = """
import os, sys, torch
from pathlib import Path
from ds_core.aio import SwapStore
from ds_core.errors import OffloadError
from ds_core.testing.file_engines import file_engine
folder = Path(sys.argv[1])
io = file_engine(sys.argv[2])(block_size=65536)
store = SwapStore(folder, 0, io, buffer_count=1)
try:
    store.reserve({"a": 2 << 20})
except OffloadError as error:
    print(error)
store.close()
# A file system that promises blocks and does not have them.
store = SwapStore(folder, 0, io, buffer_count=1, allocate=lambda fd, offset, nbytes: os.ftruncate(fd, offset + nbytes))
store.reserve({"a": 400_000, "b": 2 << 20})
store.put("a", torch.ones(100_000)).wait()
try:
    store.put("b", torch.ones(1 << 19)).wait()
except OffloadError as error:
    print(error)
out = torch.zeros(100_000)
store.get("a", out).wait()
print(bool((out == 1).all()))
store.close()
io.close()
"""


def run_on_a_full_disk(tmp_path: Path, program: str, kind: str) -> list[str]:
    """Lines of `program`, run on a file system of 1 MiB that only it sees."""
    if shutil.which("unshare") is None:
        pytest.skip("a small file system needs the program unshare; the errors themselves are tested with fakes")
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", *user, "--mount", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, program, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"this user may not mount a small file system: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(tmp_path, kind):
    if file_engine(kind) is None:
        pytest.skip("no installed wheel brings an engine of its own that this kernel allows")
    at_start, in_the_middle, other_is_readable = run_on_a_full_disk(tmp_path, FULL, kind)
    assert at_start.startswith(f"{SETTING} has too little room: ")
    assert "needs 2097152 bytes more and 1044480 are free (No space left on device)" in at_start
    assert in_the_middle.startswith("storing b: writing 2097152 bytes at offset 401408 of ")
    assert "ENOSPC, No space left on device at offset" in in_the_middle
    assert f"point {SETTING} at a larger disk" in in_the_middle
    assert other_is_readable == "True"
