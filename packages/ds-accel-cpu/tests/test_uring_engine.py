"""What the io_uring engine adds to the contract of all engines, whose tests are ds-core's test_aio_engines.py."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ds_accel_cpu.aio import refusal
from ds_core.aio import ALIGNMENT, aligned_empty
from ds_core.aio.files import SystemCalls
from ds_core.errors import OffloadError

if refusal():
    pytest.skip(f"io_uring cannot be used here: {refusal()}", allow_module_level=True)

from ds_accel_cpu.aio.uring import BUFFERS, UringIO

BLOCK = 2 * ALIGNMENT
TIMEOUT_S = 30
Make = Callable[..., UringIO]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[UringIO] = []

    def one(**settings: object) -> UringIO:
        made.append(UringIO(**{"block_size": BLOCK, **settings}))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for io in made:
        io.close()


def values(numel: int, seed: int = 0) -> torch.Tensor:
    tensor = aligned_empty(numel, torch.uint8)
    return tensor.random_(0, 256, generator=torch.Generator().manual_seed(seed))


class Asked(SystemCalls):
    """Real transfers, before each of which `act` is called with its offset."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self._act = act

    def before(self, fd: int, offset: int, nbytes: int, *, writes: bool) -> int:
        self._act(offset)
        return nbytes


# --- what each setting does, by the lanes' own figures -------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 3])
def test_block_size_is_what_one_operation_moves(tmp_path: Path, make: Make, blocks: int) -> None:
    io = make(block_size=blocks * BLOCK)
    io.write(values(12 * BLOCK), tmp_path / "file", 0).wait()
    assert io.figures()[0].blocks == 12 // blocks


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_queue_depth_is_the_most_under_way(tmp_path: Path, make: Make, depth: int) -> None:
    io = make(queue_depth=depth)
    io.write(values(50 * BLOCK), tmp_path / "file", 0).wait()
    assert io.figures()[0].most_under_way == depth


def test_every_lane_moves_its_share(tmp_path: Path, make: Make) -> None:
    io = make(intra_op_parallelism=3)
    tensor, out = values(31 * BLOCK + 5), torch.zeros(31 * BLOCK + 5, dtype=torch.uint8)
    io.write(tensor, tmp_path / "file", 0).wait()
    assert sorted(lane.blocks for lane in io.figures()) == [10, 11, 11]
    io.read(out, tmp_path / "file", 0).wait()
    assert torch.equal(out, tensor)


def test_blocks_are_submitted_together_unless_single_submit(tmp_path: Path, make: Make) -> None:
    together, single = make(queue_depth=4, overlap_events=False), make(queue_depth=4, single_submit=True)
    for io in (together, single):
        io.write(values(12 * BLOCK), tmp_path / "file", 0).wait()
    assert together.figures()[0].submissions == 3
    assert single.figures()[0].submissions == 12


@pytest.mark.parametrize("overlap", [False, True])
def test_overlap_events_starts_a_block_before_all_earlier_ones_ended(tmp_path: Path, make: Make, overlap: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    io = make(queue_depth=2, overlap_events=overlap)
    out = aligned_empty(BLOCK, torch.uint8)
    held = io.read(out, tmp_path / "pipe", 0)  # lasts until somebody writes
    while not io.figures()[0].blocks:
        time.sleep(0.001)
    later = io.write(values(3 * BLOCK), tmp_path / "file", 0)
    if overlap:
        later.wait()
    else:
        time.sleep(0.2)
        assert not later.is_done
    assert not held.is_done
    os.write(pipe, bytes(range(256)) * (BLOCK // 256))
    held.wait()
    later.wait()
    os.close(pipe)
    assert out[:256].tolist() == list(range(256))


# --- registered memory ---------------------------------------------------------------------------------------------


def test_registered_memory_is_moved_as_such_until_it_is_not(tmp_path: Path, make: Make) -> None:
    io, tensor, path = make(), values(8 * BLOCK), tmp_path / "file"
    io.register(tensor)
    io.write(tensor, path, 0).wait()
    found = io.figures()[0].registered_blocks
    if not found:
        pytest.skip("the limit of locked memory (ulimit -l) or the kernel allows no registered buffer")
    assert found == 8
    io.write(tensor[: 2 * BLOCK], path, 0).wait()  # a part of it is inside
    assert io.figures()[0].registered_blocks == 10
    io.unregister(tensor)
    out = values(8 * BLOCK, seed=1)
    io.read(out, path, 0).wait()
    assert io.figures()[0].registered_blocks == 10
    assert torch.equal(out, tensor)


def test_registered_memory_lives_as_long_as_its_registration(make: Make) -> None:
    io = make()
    tensor = values(BLOCK)
    address = tensor.untyped_storage().data_ptr()
    io.register(tensor)
    del tensor
    gc.collect()
    others = [aligned_empty(BLOCK, torch.uint8) for _ in range(20)]
    assert all(other.untyped_storage().data_ptr() != address for other in others)


def test_more_buffers_than_the_table_holds_are_moved_all_the_same(tmp_path: Path, make: Make) -> None:
    io = make()
    many = [values(BLOCK, seed) for seed in range(BUFFERS + 3)]
    for tensor in many:
        io.register(tensor)
    for index, tensor in enumerate(many):
        io.write(tensor, tmp_path / "file", index * BLOCK).wait()
    out = aligned_empty(len(many) * BLOCK, torch.uint8)
    io.read(out, tmp_path / "file", 0).wait()
    assert torch.equal(out, torch.cat(many))


# --- the kernel's answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EINTR, errno.EAGAIN])
def test_what_the_kernel_puts_off_is_tried_again(tmp_path: Path, make: Make, code: int) -> None:
    refused: set[int] = set()

    def once(offset: int) -> None:
        if offset not in refused:
            refused.add(offset)
            raise OSError(code, os.strerror(code))

    tensor = values(5 * BLOCK)
    make(calls=Asked(once)).write(tensor, tmp_path / "file", 0).wait()
    assert len(refused) == 5
    assert (tmp_path / "file").read_bytes() == bytes(tensor.tolist())


def test_a_ring_that_cannot_be_had_names_settings_and_limits() -> None:
    with pytest.raises(OffloadError, match=r"no 1 io_uring of 1000000000 entries can be made .*lower.*ulimit"):
        UringIO(queue_depth=1_000_000_000)


# --- threads, signals and the end ------------------------------------------------------------------------------------


def test_other_threads_run_while_one_waits(tmp_path: Path, make: Make) -> None:
    """The transfer needs the interpreter, which a wait that held it would never give."""
    asked: list[int] = []
    make(calls=Asked(asked.append)).write(values(3 * BLOCK), tmp_path / "file", 0).wait()
    assert len(asked) == 3


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the tests were started in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_wait_and_not_the_transfer(tmp_path: Path, make: Make) -> None:
    go_on = threading.Event()
    tensor = values(2 * BLOCK)

    def hold(offset: int) -> None:
        go_on.wait(TIMEOUT_S)

    handle = make(calls=Asked(hold)).write(tensor, tmp_path / "f", 0)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        handle.wait()
    go_on.set()
    handle.wait()
    assert (tmp_path / "f").read_bytes() == bytes(tensor.tolist())


def test_lanes_leave_signals_to_python(make: Make) -> None:
    io = make(intra_op_parallelism=2)
    tasks = [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text().startswith("ds-uring")]
    assert len(tasks) >= 2
    for task in tasks:
        (blocked,) = [line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk")]
        assert int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1
    io.close()


def test_a_forgotten_engine_finishes_what_was_begun(tmp_path: Path) -> None:
    tensor = values(300 * BLOCK)
    io = UringIO(block_size=BLOCK, queue_depth=2)
    io.write(tensor.clone(), tmp_path / "file", 0)  # nobody else holds this memory
    del io
    gc.collect()
    assert (tmp_path / "file").read_bytes() == bytes(tensor.tolist())


def test_requests_nobody_holds_let_go_of_files_and_memory(tmp_path: Path, make: Make) -> None:
    def open_files() -> int:
        return sum(1 for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(fd))

    io = make()
    for index in range(10):
        io.write(values(BLOCK), tmp_path / "file", index * BLOCK)
    last = io.write(values(BLOCK), tmp_path / "file", 0)
    last.wait()
    for other in list(io.requests):
        other.wait()
    assert open_files() == 0
    io.write(values(BLOCK), tmp_path / "file", 0).wait()
    assert len(io.requests) == 1


def test_many_threads_wait_for_one_request(tmp_path: Path, make: Make) -> None:
    handle = make().read(values(BLOCK), tmp_path / "none", 0)
    found: list[str] = []

    def wait() -> None:
        try:
            handle.wait()
        except OffloadError as error:
            found.append(str(error))

    waiting = [threading.Thread(target=wait) for _ in range(4)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(TIMEOUT_S)
    assert len(found) == 4
    assert len(set(found)) == 1
