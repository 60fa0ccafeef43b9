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
from typing import ClassVar

import torch

from ds_core.aio.contract import ALIGNMENT
from ds_core.aio.files import SystemCalls, read_fully, write_fully
from ds_core.aio.lane import Lane, Scratch
from ds_core.aio.memory import byte_view, round_up
from ds_core.aio.pieces import Piece, Way, cut, deal
from ds_core.aio.request import FileIO, FileRequest, ends_early, system_text

__all__ = ["ThreadedIO"]

logger = logging.getLogger(__name__)


class Request(FileRequest):
    """A request, and what its pieces share."""

    def __init__(self, tensor: torch.Tensor, path: Path, offset: int, *, writes: bool) -> None:
        super().__init__(tensor, path, offset, writes=writes)
        self._left = 0
        self._lock = threading.Lock()
        self._done = threading.Event()

    def block(self) -> None:
        """Returns when every piece is done."""
        self._done.wait()

    @property
    def is_done(self) -> bool:
        """Whether `wait` returns or raises at once."""
        return self._done.is_set()

    def expect(self, pieces: int) -> None:
        """Says how many calls of `piece_done` make the request done."""
        self._left = pieces

    def fail(self, error: Exception, reason: str) -> None:
        """Records why the request fails; the first reason stays."""
        with self._lock:
            super().fail(error, reason)

    def piece_done(self) -> None:
        """Counts a piece; the last one closes the file and wakes who waits."""
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self.settle()

    def settle(self) -> None:
        """Wakes who waits."""
        self.let_go()
        self._done.set()


class ThreadedIO(FileIO[Request]):
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

    name: ClassVar[str] = "threads"

    def __init__(
        self,
        *,
        block_size: int = 1 << 20,
        queue_depth: int = 8,
        intra_op_parallelism: int = 1,
        overlap_events: bool = True,
        calls: SystemCalls | None = None,
    ) -> None:
        super().__init__(block_size, queue_depth, intra_op_parallelism, calls)
        self._lanes = [
            Lane(queue_depth, overlap=overlap_events, scratch_nbytes=block_size, name=f"ds-aio-{index}")
            for index in range(intra_op_parallelism)
        ]
        self._turn = itertools.cycle(range(intra_op_parallelism))
        # At exit the threads end before the interpreter does.
        self._end = weakref.finalize(self, _end, self._lanes, self._pid)

    def make(self, tensor: torch.Tensor, path: Path, offset: int, *, writes: bool) -> Request:
        """A request of which nothing is started."""
        return Request(tensor, path, offset, writes=writes)

    def stop(self) -> None:
        """Ends the threads once their queues are empty."""
        self._end()

    def start(self, request: Request) -> None:
        """Deals its pieces to the lanes."""
        assert request.file is not None
        pieces = cut(
            request.nbytes,
            request.offset,
            request.address,
            self.block_size,
            writes=request.writes,
            direct=request.file.direct_fd is not None,
        )
        request.expect(len(pieces))
        for run in deal(pieces, self.lanes):
            self._lanes[next(self._turn)].add([partial(self._move, request, piece) for piece in run])

    def _move(self, request: Request, piece: Piece, scratch: Scratch) -> None:
        """Moves one piece in a lane's thread, unless its request has failed already."""
        try:
            if request.error is None:
                self._move_or_fall_back(request, piece, scratch)
        except OSError as error:
            request.fail(error, f"{system_text(error)} at offset {request.offset + piece.start}")
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
                self.files.give_up_direct(request.path, error)
        assert request.file is not None
        view = request.view[piece.start : piece.start + piece.nbytes]
        fd, at = request.file.cached_fd(), request.offset + piece.start
        if request.writes:
            write_fully(self.calls, fd, view, at)
        else:
            _check_whole(request, piece, read_fully(self.calls, fd, view, at, direct=False))

    def _move_direct(self, request: Request, piece: Piece, scratch: Scratch) -> None:
        assert request.file is not None
        assert request.file.direct_fd is not None
        fd, at = request.file.direct_fd, request.offset + piece.start
        if piece.way is Way.DIRECT:
            view = request.view[piece.start : piece.start + piece.nbytes]
            if request.writes:
                write_fully(self.calls, fd, view, at)
            else:
                _check_whole(request, piece, read_fully(self.calls, fd, view, at, direct=True))
            return
        buffer, memory = scratch(), request.address + piece.start
        view = byte_view(buffer)
        # memmove lets other threads of Python run, and a copy by slices of memoryview does not.
        if request.writes:
            ctypes.memmove(buffer.data_ptr(), memory, piece.nbytes)
            write_fully(self.calls, fd, view[: piece.nbytes], at)
        else:
            before = at % ALIGNMENT
            covered = round_up(before + piece.nbytes)
            got = read_fully(self.calls, fd, view[:covered], at - before, direct=True)
            _check_whole(request, piece, got - before)
            ctypes.memmove(memory, buffer.data_ptr() + before, piece.nbytes)


def _check_whole(request: Request, piece: Piece, got: int) -> None:
    if got < piece.nbytes:
        raise ends_early(request.path)


def _end(lanes: list[Lane], pid: int) -> None:
    if os.getpid() == pid:
        for lane in lanes:
            lane.close()
