"""Files opened past the page cache where their file system allows it, and the system calls that move bytes."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path

from ds_core.aio.contract import ALIGNMENT

__all__ = ["Files", "OpenFile", "SystemCalls", "read_fully", "write_fully"]

logger = logging.getLogger(__name__)

O_DIRECT = getattr(os, "O_DIRECT", 0)  # absent on macOS


class SystemCalls:
    """The system calls used, as one replaceable object."""

    def open(self, path: Path, flags: int) -> int:
        """A file descriptor that programs started later do not inherit."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        """Closes it."""
        os.close(fd)

    def before(self, fd: int, offset: int, nbytes: int, *, writes: bool) -> int:
        """How many of `nbytes` a transfer is to move, at least 1; every engine asks it before each of them.

        Raises:
            OSError: what the transfer is to fail with.
        """
        return nbytes

    def read(self, fd: int, view: memoryview, offset: int) -> int:
        """Bytes read into `view`, 0 at the end of the file."""
        return os.preadv(fd, [view[: self.before(fd, offset, len(view), writes=False)]], offset)

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        """Bytes written from `view`."""
        return os.pwritev(fd, [view[: self.before(fd, offset, len(view), writes=True)]], offset)


def read_fully(calls: SystemCalls, fd: int, view: memoryview, offset: int, *, direct: bool) -> int:
    """Bytes read into `view`: all it holds, or fewer where the file ends."""
    done = 0
    while done < len(view):
        got = calls.read(fd, view[done:], offset + done)
        done += got
        # A direct read stops off a block boundary only at the file's end, and could not go on from there.
        if got == 0 or (direct and got % ALIGNMENT):
            break
    return done


def write_fully(calls: SystemCalls, fd: int, view: memoryview, offset: int) -> None:
    """Writes all of `view`.

    Raises:
        OSError: ENOSPC and others; a call that writes nothing is taken for a full file system.
    """
    done = 0
    while done < len(view):
        wrote = calls.write(fd, view[done:], offset + done)
        if wrote == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += wrote


class OpenFile:
    """One file, open for one request; the descriptor for the page cache is opened when it is needed."""

    def __init__(self, calls: SystemCalls, path: Path, flags: int, direct_fd: int | None) -> None:
        self.path = path
        self.direct_fd = direct_fd
        self._calls = calls
        self._flags = flags
        self._cached_fd: int | None = None
        self._lock = threading.Lock()

    def cached_fd(self) -> int:
        """A descriptor that goes through the page cache."""
        with self._lock:
            if self._cached_fd is None:
                self._cached_fd = self._calls.open(self.path, self._flags)
            return self._cached_fd

    def close(self) -> None:
        """Closes both descriptors."""
        for fd in (self.direct_fd, self._cached_fd):
            if fd is not None:
                self._calls.close(fd)
        self.direct_fd = self._cached_fd = None


class Files:
    """Opens files, and knows of each directory whether its files can be moved past the page cache."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        self._cached_only: set[Path] = set()
        self._lock = threading.Lock()

    def open(self, path: Path, *, writes: bool) -> OpenFile:
        """The file, past the page cache unless its directory is known not to allow that.

        Raises:
            OSError: it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT if writes else os.O_RDONLY
        direct_fd = None
        if O_DIRECT and path.parent not in self._cached_only:
            try:
                direct_fd = self._calls.open(path, flags | O_DIRECT)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self.give_up_direct(path, error)
        file = OpenFile(self._calls, path, flags, direct_fd)
        if direct_fd is None:
            file.cached_fd()
        return file

    def give_up_direct(self, path: Path, error: OSError) -> None:
        """Uses the page cache for `path`'s directory from now on, and says so once."""
        with self._lock:
            if path.parent in self._cached_only:
                return
            self._cached_only.add(path.parent)
        logger.warning(
            "files in %s go through the page cache: its file system does not take O_DIRECT (%s)",
            path.parent,
            error.strerror,
        )
