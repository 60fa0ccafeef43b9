"""What all engines for files share: a request with its outcome, and the life of an engine around its requests."""

from __future__ import annotations

import errno
import logging
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch

from ds_core.aio.contract import ALIGNMENT
from ds_core.aio.files import Files, OpenFile, SystemCalls
from ds_core.aio.memory import byte_view
from ds_core.errors import OffloadError

__all__ = ["FileIO", "FileRequest", "ends_early", "system_text"]

logger = logging.getLogger(__name__)


class FileRequest(ABC):
    """One read or write: a `Handle`."""

    def __init__(self, tensor: torch.Tensor, path: Path, offset: int, *, writes: bool) -> None:
        self.view = byte_view(tensor)
        self.nbytes = len(self.view)
        self.address = tensor.data_ptr()
        self.path = path
        self.offset = offset
        self.writes = writes
        self.file: OpenFile | None = None
        self.error: OffloadError | None = None
        self.is_seen = False
        self._tensor: torch.Tensor | None = tensor

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether `wait` returns or raises at once."""

    @abstractmethod
    def settle(self) -> None:
        """Ends a request of which nothing was started."""

    @abstractmethod
    def block(self) -> None:
        """Returns when nothing of it is under way any more."""

    def wait(self) -> None:
        """Returns when every byte is moved.

        Raises:
            OffloadError: one was not.
        """
        self.block()
        if self.error is not None:
            self.is_seen = True
            raise self.error

    def fail(self, error: Exception, reason: str) -> None:
        """Records why the request fails; the first reason stays."""
        verb = "writing" if self.writes else "reading"
        found = OffloadError(f"{verb} {self.nbytes} bytes at offset {self.offset} of {self.path} failed: {reason}")
        found.__cause__ = error
        self.error = self.error or found

    def let_go(self) -> None:
        """Closes the file and drops the tensor."""
        if self.file is not None:
            self.file.close()
        self.view = self.view[:0]
        self._tensor = None


R = TypeVar("R", bound=FileRequest)


class FileIO(ABC, Generic[R]):
    """An engine's requests, from `read` and `write` to `close`. Begun by one thread at a time, waited for by any.

    Args:
        block_size: bytes of one system call, a multiple of 4096.
        queue_depth: blocks under way in each lane.
        intra_op_parallelism: lanes.
        calls: the system calls; replaceable for tests.

    Raises:
        OffloadError: a setting that cannot work.

    Attributes:
        name: what does the work, for people.
    """

    name: ClassVar[str] = ""

    def __init__(
        self, block_size: int, queue_depth: int, intra_op_parallelism: int, calls: SystemCalls | None = None
    ) -> None:
        if block_size < ALIGNMENT or block_size % ALIGNMENT:
            raise OffloadError(f"block_size must be a positive multiple of {ALIGNMENT}, got {block_size}")
        if queue_depth < 1 or intra_op_parallelism < 1:
            raise OffloadError(
                f"queue_depth and intra_op_parallelism must be at least 1, got {queue_depth} and {intra_op_parallelism}"
            )
        self.block_size = block_size
        self.lanes = intra_op_parallelism
        self.calls = calls or SystemCalls()
        self.files = Files(self.calls)
        self.requests: set[R] = set()
        self._pid = os.getpid()
        self._closed = False

    @abstractmethod
    def make(self, tensor: torch.Tensor, path: Path, offset: int, *, writes: bool) -> R:
        """A request of which nothing is started."""

    @abstractmethod
    def start(self, request: R) -> None:
        """Begins to move a request that has a file and at least one byte."""

    @abstractmethod
    def stop(self) -> None:
        """Waits for what is under way and ends the threads; any number of times."""

    def read(self, tensor: torch.Tensor, path: Path, offset_bytes: int) -> R:
        """Fills a contiguous `tensor` with the file's bytes from `offset_bytes` on."""
        return self._submit(self.make(tensor, path, offset_bytes, writes=False))

    def write(self, tensor: torch.Tensor, path: Path, offset_bytes: int) -> R:
        """Writes a contiguous `tensor` at `offset_bytes`; makes the file if needed, unless the tensor is empty."""
        return self._submit(self.make(tensor, path, offset_bytes, writes=True))

    def register(self, buffer: torch.Tensor) -> None:
        """Prepares for nothing."""

    def unregister(self, buffer: torch.Tensor) -> None:
        """Has nothing to take back."""

    def close(self) -> None:
        """Waits for what is under way and ends the threads; says which failures nobody asked for."""
        self._closed = True
        self.stop()
        for request in self.requests:
            if request.is_done and request.error is not None and not request.is_seen:
                logger.error("nobody waited for a request that failed: %s", request.error)
        self.requests.clear()

    def _submit(self, request: R) -> R:
        if self._closed:
            raise OffloadError(f"no file can be read or written after close(), got {request.path}")
        if os.getpid() != self._pid:
            raise OffloadError("a forked process has none of its parent's I/O threads; make an engine of its own there")
        if request.offset < 0:
            raise OffloadError(f"offset_bytes must be at least 0, got {request.offset}")
        # In place: what ends an engine that is forgotten holds the same set.
        self.requests -= {r for r in self.requests if r.is_done and (not r.error or r.is_seen)}
        self.requests.add(request)
        if not request.nbytes:
            request.settle()
            return request
        try:
            request.file = self.files.open(request.path, writes=request.writes)
        except OSError as error:
            request.fail(error, f"it cannot be opened ({system_text(error)})")
            request.settle()
            return request
        self.start(request)
        return request


def ends_early(path: Path) -> OSError:
    """What is wrong with a read that goes past the file's end."""
    return OSError(errno.ENODATA, f"the file ends at byte {path.stat().st_size}, before the tensor does")


def system_text(error: OSError) -> str:
    """The system's reason, by name and in words."""
    return f"{errno.errorcode.get(error.errno or 0, 'error')}, {error.strerror}"
