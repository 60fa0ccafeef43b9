"""`UringIO`: asynchronous tensor I/O through io_uring, past the page cache where the file system allows.

The plan of a request, its files and its errors are those of ds-core's threads; `ds_accel_cpu._aio` moves the bytes.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import weakref
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from ds_accel_cpu import _aio
from ds_accel_cpu.aio.support import refusal
from ds_core.aio.files import Files, SystemCalls
from ds_core.aio.memory import byte_view
from ds_core.aio.pieces import Way, runs
from ds_core.aio.request import FileIO, FileRequest, ends_early, system_text
from ds_core.errors import OffloadError

__all__ = ["LaneFigures", "UringIO", "UringRequest"]

BUFFERS = 64
"""Tensors that may be registered at a time."""

_CODES = {way: code for code, way in enumerate((Way.DIRECT, Way.STAGED, Way.BUFFERED))}


class LaneFigures(NamedTuple):
    """What one lane has done so far.

    Args:
        blocks: submitted to the kernel.
        registered_blocks: of these, between a file and registered memory.
        submissions: system calls that submitted them.
        most_under_way: blocks at a time.
    """

    blocks: int
    registered_blocks: int
    submissions: int
    most_under_way: int


class UringRequest(FileRequest):
    """A request, and its transfer once that has begun."""

    def __init__(self, tensor: torch.Tensor, path: Path, offset: int, files: Files, *, writes: bool) -> None:
        super().__init__(tensor, path, offset, writes=writes)
        self.transfer: _aio.Transfer | None = None
        self._files = files
        self._is_collected = False
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        """Whether `wait` returns or raises at once."""
        if self.transfer is not None:
            if not self.transfer.done:
                return False
            self._collect(self.transfer)
        return self._is_collected

    def block(self) -> None:
        """Returns when the kernel is through with the memory, and the file is closed."""
        if self.transfer is not None:
            self.transfer.wait()
            self._collect(self.transfer)

    def settle(self) -> None:
        """Lets go of the file and the tensor."""
        self.let_go()
        self._is_collected = True

    def _collect(self, transfer: _aio.Transfer) -> None:
        with self._lock:
            if self._is_collected:
                return
            if transfer.direct_refused:
                self._files.give_up_direct(self.path, OSError(errno.EINVAL, os.strerror(errno.EINVAL)))
            if transfer.code:
                error = OSError(transfer.code, os.strerror(transfer.code))
                if transfer.code == errno.ENODATA:
                    error = _ends_early(self.path)
                self.fail(error, f"{system_text(error)} at offset {transfer.position}")
            self.settle()


class UringIO(FileIO[UringRequest]):
    """An `AsyncIO` on io_uring: a ring and a thread for each lane, which sleep in the kernel while blocks are moved.

    A request is cut into blocks. `intra_op_parallelism` lanes each take a run of neighbouring blocks and keep up to
    `queue_depth` of them under way. Memory on a block boundary is moved without a copy; other memory through staging
    buffers, at most one block for each block under way. Its files are closed and its memory let go when it is waited
    for, when the next request is begun after it, or at `close`.

    Args:
        block_size: bytes of one operation, a multiple of 4096.
        queue_depth: blocks under way in each lane.
        intra_op_parallelism: lanes.
        overlap_events: start a block as soon as another ends; else in batches of `queue_depth`.
        single_submit: tell the kernel of each block by a system call of its own; else of all that can start at once.
        calls: opens and closes files, and is asked before each block; replaceable for tests.

    Raises:
        OffloadError: a setting that cannot work, or io_uring cannot be used here (see `refusal`).
    """

    name: ClassVar[str] = "io_uring"

    def __init__(
        self,
        *,
        block_size: int = 1 << 20,
        queue_depth: int = 8,
        intra_op_parallelism: int = 1,
        overlap_events: bool = True,
        single_submit: bool = False,
        calls: SystemCalls | None = None,
    ) -> None:
        super().__init__(block_size, queue_depth, intra_op_parallelism, calls)
        if refusal():
            raise OffloadError(f"io_uring cannot be used: {refusal()}; use ds_core.aio.ThreadedIO")
        asks = type(self.calls).before is not SystemCalls.before
        try:
            self._engine = _aio.Engine(
                lanes=intra_op_parallelism,
                depth=queue_depth,
                block_bytes=block_size,
                overlap=overlap_events,
                single_submit=single_submit,
                buffers=BUFFERS,
                before=_Before(self.calls) if asks else None,
            )
        except RuntimeError as error:
            raise OffloadError(
                f"no {intra_op_parallelism} io_uring of {queue_depth} entries can be made ({error}); lower"
                f" intra_op_parallelism or queue_depth, or raise the limits of files and locked memory (ulimit -n, -l)"
            ) from error
        self._turn = itertools.cycle(range(intra_op_parallelism))
        self._registered: dict[int, torch.Tensor] = {}
        # At exit the threads end before the interpreter does; what they move stays alive until then.
        self._end = weakref.finalize(self, _end, self._engine, self.requests, self._registered, self._pid)

    def make(self, tensor: torch.Tensor, path: Path, offset: int, *, writes: bool) -> UringRequest:
        """A request of which nothing is started."""
        return UringRequest(tensor, path, offset, self.files, writes=writes)

    def start(self, request: UringRequest) -> None:
        """Deals its runs of blocks to the lanes."""
        file = request.file
        assert file is not None
        plan = runs(
            request.nbytes,
            request.offset,
            request.address,
            self.block_size,
            writes=request.writes,
            direct=file.direct_fd is not None,
            hands=self.lanes,
        )
        is_cached = any(span.way is Way.BUFFERED for run in plan for span in run)
        try:
            cached_fd = file.cached_fd() if is_cached else -1
        except OSError as error:
            request.fail(error, f"it cannot be opened ({system_text(error)})")
            request.settle()
            return
        request.transfer = self._engine.begin(
            memory=request.address,
            offset=request.offset,
            nbytes=request.nbytes,
            writes=request.writes,
            direct_fd=-1 if file.direct_fd is None else file.direct_fd,
            cached_fd=cached_fd,
            runs=[(next(self._turn), [(span.start, span.nbytes, _CODES[span.way]) for span in run]) for run in plan],
        )

    def stop(self) -> None:
        """Waits for what is under way and ends the threads."""
        self._end()

    def register(self, buffer: torch.Tensor) -> None:
        """Pins the memory once for all transfers between it and files, where the kernel and its limits allow that.

        The kernel otherwise pins the pages of each block while it is moved. `ulimit -l` limits what may be pinned.
        """
        index = next((i for i in range(BUFFERS) if i not in self._registered), None)
        nbytes = len(byte_view(buffer))
        if index is not None and nbytes and not self._closed:
            if self._engine.set_buffer(index, buffer.data_ptr(), nbytes):
                self._registered[index] = buffer
            else:
                self._engine.set_buffer(index, 0, 0)  # some rings may have taken it

    def unregister(self, buffer: torch.Tensor) -> None:
        """Unpins the memory."""
        for index, held in list(self._registered.items()):
            if held is buffer:
                self._engine.set_buffer(index, 0, 0)
                del self._registered[index]

    def figures(self) -> list[LaneFigures]:
        """What each lane has done so far."""
        return [LaneFigures(*found) for found in self._engine.figures()]


class _Before:
    """`SystemCalls.before` as the lanes ask it: an errno below zero in place of an exception."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls

    def __call__(self, writes: bool, fd: int, offset: int, nbytes: int) -> int:
        try:
            return self._calls.before(fd, offset, nbytes, writes=writes)
        except OSError as error:
            return -(error.errno or errno.EIO)


def _ends_early(path: Path) -> OSError:
    try:
        return ends_early(path)
    except OSError as error:  # the file is gone since
        return error


def _end(engine: _aio.Engine, requests: set[UringRequest], registered: dict[int, torch.Tensor], pid: int) -> None:
    if os.getpid() != pid:
        return
    engine.finish()
    for request in requests:
        request.block()
    registered.clear()
