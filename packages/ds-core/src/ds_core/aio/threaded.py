"""`ThreadedIO`: asynchronous tensor I/O by threads, past the page cache where the file system allows."""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import threading
import weakref
from functools import partial
from pathlib import Path

import torch

from ds_core.aio.contract import ALIGNMENT
from ds_core.aio.files import Files, OpenFile, SystemCalls, read_fully, write_fully
from ds_core.aio.lane import Lane, Scratch
from ds_core.aio.memory import byte_view, round_up
from ds_core.aio.pieces import Piece, Way, cut, deal
from ds_core.errors import OffloadError

__all__ = ["ThreadedIO"]

logger = logging.getLogger(__name__)


class Request:
    """One read or write: a `Handle`, and what its pieces share."""

    def __init__(self, tensor: torch.Tensor, path: Path, offset: int, *, writes: bool) -> None:
        self.view = byte_view(tensor)
        self.address = tensor.data_ptr()
        self.path = path
        self.offset = offset
        self.writes = writes
        self.file: OpenFile | None = None
        self.error: OffloadError | None = None
        self.is_seen = False
        self._tensor: torch.Tensor | None = tensor
        self._left = 0
        self._lock = threading.Lock()
        self._done = threading.Event()

    def wait(self) -> None:
        """Returns when every piece is done.

        Raises:
            OffloadError: one failed.
        """
        self._done.wait()
        if self.error is not None:
            self.is_seen = True
            raise self.error

    @property
    def is_done(self) -> bool:
        """Whether `wait` returns or raises at once."""
        return self._done.is_set()

    def expect(self, pieces: int) -> None:
        """Says how many calls of `piece_done` make the request done."""
        self._left = pieces
        if not pieces:
            self._finish()

    def fail(self, error: Exception, reason: str) -> None:
        """Records why the request fails; the first reason stays."""
        verb = "writing" if self.writes else "reading"
        found = OffloadError(f"{verb} {len(self.view)} bytes at offset {self.offset} of {self.path} failed: {reason}")
        found.__cause__ = error
        with self._lock:
            self.error = self.error or found

    def piece_done(self) -> None:
        """Counts a piece; the last one closes the file and wakes who waits."""
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._finish()

    def _finish(self) -> None:
        if self.file is not None:
            self.file.close()
        self.view = self.view[:0]
        self._tensor = None
        self._done.set()


class ThreadedIO:
    """An `AsyncIO` that needs nothing but threads.

    A request is cut into blocks. `intra_op_parallelism` lanes each take a run of neighbouring blocks and keep up to
    `queue_depth` of them under way, each in a thread that sleeps in the kernel meanwhile. Memory on a block boundary
    is moved without a copy; other memory through staging buffers, at most one block for each thread. Requests are begun
    by one thread at a time, and waited for by any.

    Args:
        block_size: bytes of one system call, a multiple of 4096.
        queue_depth: blocks under way in each lane.
        intra_op_parallelism: lanes.
        overlap_events: start a block as soon as another ends; else in batches of `queue_depth`.
        calls: the system calls; replaceable for tests.
    """

    def __init__(
        self,
        *,
        block_size: int = 1 << 20,
        queue_depth: int = 8,
        intra_op_parallelism: int = 1,
        overlap_events: bool = True,
        calls: SystemCalls | None = None,
    ) -> None:
        if block_size < ALIGNMENT or block_size % ALIGNMENT:
            raise OffloadError(f"block_size must be a positive multiple of {ALIGNMENT}, got {block_size}")
        if queue_depth < 1 or intra_op_parallelism < 1:
            raise OffloadError(
                f"queue_depth and intra_op_parallelism must be at least 1, got {queue_depth} and {intra_op_parallelism}"
            )
        self._block_size = block_size
        self._calls = calls or SystemCalls()
        self._files = Files(self._calls)
        self._lanes = [
            Lane(queue_depth, overlap=overlap_events, scratch_nbytes=block_size, name=f"ds-aio-{index}")
            for index in range(intra_op_parallelism)
        ]
        self._turn = itertools.cycle(range(intra_op_parallelism))
        self._requests: set[Request] = set()
        self._pid = os.getpid()
        self._closed = False
        # At exit the threads end before the interpreter does.
        self._end = weakref.finalize(self, _end, self._lanes, self._pid)

    def read(self, tensor: torch.Tensor, path: Path, offset_bytes: int) -> Request:
        """Fills a contiguous `tensor` with the file's bytes from `offset_bytes` on."""
        return self._submit(Request(tensor, path, offset_bytes, writes=False))

    def write(self, tensor: torch.Tensor, path: Path, offset_bytes: int) -> Request:
        """Writes a contiguous `tensor` at `offset_bytes`; makes the file if needed, unless the tensor is empty."""
        return self._submit(Request(tensor, path, offset_bytes, writes=True))

    def close(self) -> None:
        """Waits for what is under way and ends the threads; says which failures nobody asked for."""
        self._closed = True
        self._end()
        for request in self._requests:
            if request.error is not None and not request.is_seen:
                logger.error("nobody waited for a request that failed: %s", request.error)
        self._requests.clear()

    def _submit(self, request: Request) -> Request:
        if self._closed:
            raise OffloadError(f"no file can be read or written after close(), got {request.path}")
        if os.getpid() != self._pid:
            raise OffloadError("a forked process has none of its parent's I/O threads; make an engine of its own there")
        if request.offset < 0:
            raise OffloadError(f"offset_bytes must be at least 0, got {request.offset}")
        self._requests = {other for other in self._requests if not other.is_done or (other.error and not other.is_seen)}
        self._requests.add(request)
        if not len(request.view):
            request.expect(0)
            return request
        try:
            request.file = self._files.open(request.path, writes=request.writes)
        except OSError as error:
            request.fail(error, f"it cannot be opened ({_text(error)})")
            request.expect(0)
            return request
        pieces = cut(
            len(request.view),
            request.offset,
            request.address,
            self._block_size,
            writes=request.writes,
            direct=request.file.direct_fd is not None,
        )
        request.expect(len(pieces))
        for run in deal(pieces, len(self._lanes)):
            self._lanes[next(self._turn)].add([partial(self._move, request, piece) for piece in run])
        return request

    def _move(self, request: Request, piece: Piece, scratch: Scratch) -> None:
        """Moves one piece in a lane's thread, unless its request has failed already."""
        try:
            if request.error is None:
                self._move_or_fall_back(request, piece, scratch)
        except OSError as error:
            request.fail(error, f"{_text(error)} at offset {request.offset + piece.start}")
        except Exception as error:
            logger.exception("a piece of %s was not moved", request.path)
            request.fail(error, f"{type(error).__name__}: {error}")
        finally:
            request.piece_done()

    def _move_or_fall_back(self, request: Request, piece: Piece, scratch: Scratch) -> None:
        if piece.way is not Way.BUFFERED:
            try:
                self._move_direct(request, piece, scratch)
                return
            except OSError as error:
                # Some file systems take O_DIRECT when a file is opened and refuse it at the first block.
                if error.errno != errno.EINVAL:
                    raise
                self._files.give_up_direct(request.path, error)
        assert request.file is not None
        view = request.view[piece.start : piece.start + piece.nbytes]
        fd, at = request.file.cached_fd(), request.offset + piece.start
        if request.writes:
            write_fully(self._calls, fd, view, at)
        else:
            _check_whole(request, piece, read_fully(self._calls, fd, view, at, direct=False))

    def _move_direct(self, request: Request, piece: Piece, scratch: Scratch) -> None:
        assert request.file is not None
        assert request.file.direct_fd is not None
        fd, at = request.file.direct_fd, request.offset + piece.start
        if piece.way is Way.DIRECT:
            view = request.view[piece.start : piece.start + piece.nbytes]
            if request.writes:
                write_fully(self._calls, fd, view, at)
            else:
                _check_whole(request, piece, read_fully(self._calls, fd, view, at, direct=True))
            return
        buffer, memory = scratch(), request.address + piece.start
        view = byte_view(buffer)
        # memmove lets other threads of Python run, and a copy by slices of memoryview does not.
        if request.writes:
            ctypes.memmove(buffer.data_ptr(), memory, piece.nbytes)
            write_fully(self._calls, fd, view[: piece.nbytes], at)
        else:
            before = at % ALIGNMENT
            covered = round_up(before + piece.nbytes)
            got = read_fully(self._calls, fd, view[:covered], at - before, direct=True)
            _check_whole(request, piece, got - before)
            ctypes.memmove(memory, buffer.data_ptr() + before, piece.nbytes)


def _check_whole(request: Request, piece: Piece, got: int) -> None:
    if got < piece.nbytes:
        end = request.path.stat().st_size
        raise OSError(errno.ENODATA, f"the file ends at byte {end}, before the tensor does")


def _text(error: OSError) -> str:
    return f"{errno.errorcode.get(error.errno or 0, 'error')}, {error.strerror}"


def _end(lanes: list[Lane], pid: int) -> None:
    if os.getpid() == pid:
        for lane in lanes:
            lane.close()
