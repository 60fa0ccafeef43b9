"""Disks for tests: one that tells of every operation before it happens, so that it can fail, wait, die, or be recorded.

They stand in for `ds_core.checkpoint.storage.disk.Disk`, whose methods are all that a checkpoint does to files.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ds_core.checkpoint.storage.disk import Disk

__all__ = ["Half", "Operation", "WatchedDisk", "failing_at", "killing_at"]


class Operation(NamedTuple):
    """One change of the disk.

    Attributes:
        number: how many came before it, counted by the disk.
        name: a method of `Disk`, or ``remove`` and ``remove_empty`` for the steps of ``remove_folder``.
        path: the file or folder; of a rename, where it came from.
        target: of a rename, where it goes.
        offset: of a write, where it begins; of a truncation, the length.
        data: of a write.
    """

    number: int
    name: str
    path: Path
    target: Path | None = None
    offset: int = 0
    data: bytes = b""


class Half(Exception):
    """Raised by a hook: write the first half of the data, then call the hook again."""


Hook = Callable[[Operation], None]


class WatchedDisk(Disk):
    """A disk that calls `hook` before every change, which may raise, wait, or end the process.

    Signs of life (`Disk.touch`) depend on the clock and are not told, nor are reads. ``remove_folder`` is told as the
    removals it consists of.

    Attributes:
        count: changes so far.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook: Hook = hook
        self._paths: dict[int, Path] = {}
        self._lock: threading.Lock = threading.Lock()
        self.count: int = 0

    def _tell(self, name: str, path: Path, target: Path | None = None, offset: int = 0, data: bytes = b"") -> Operation:
        with self._lock:
            operation = Operation(self.count, name, path, target, offset, data)
            self.count += 1
        self._hook(operation)
        return operation

    def create(self, path: Path, *, direct: bool = False) -> int:
        """As `Disk.create`."""
        self._tell("create", path)
        fd = super().create(path, direct=direct)
        self._paths[fd] = path
        return fd

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        """As `Disk.write`; after `Half`, writes half and tells the same operation again."""
        with self._lock:
            operation = Operation(self.count, "write", self._paths[fd], None, offset, bytes(view))
            self.count += 1
        try:
            self._hook(operation)
        except Half:
            super().write(fd, view[: len(view) // 2], offset)
            self._hook(operation)
        return super().write(fd, view, offset)

    def truncate(self, fd: int, nbytes: int) -> None:
        """As `Disk.truncate`."""
        self._tell("truncate", self._paths[fd], offset=nbytes)
        super().truncate(fd, nbytes)

    def sync(self, fd: int) -> None:
        """As `Disk.sync`."""
        self._tell("sync", self._paths[fd])
        super().sync(fd)

    def close(self, fd: int) -> None:
        """As `Disk.close`."""
        self._paths.pop(fd, None)
        super().close(fd)

    def sync_folder(self, path: Path) -> None:
        """As `Disk.sync_folder`."""
        self._tell("sync_folder", path)
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """As `Disk.rename`."""
        self._tell("rename", source, target)
        super().rename(source, target)

    def make_folder(self, path: Path) -> None:
        """As `Disk.make_folder`, a parent at a time."""
        for folder in [path, *path.parents][::-1]:
            if folder == path or not folder.exists():
                self._tell("make_folder", folder)
                folder.mkdir()

    def remove_folder(self, path: Path) -> None:
        """As `Disk.remove_folder`, an entry at a time."""
        if path.is_symlink():
            self.remove(path)
        elif path.is_dir():
            for entry in sorted(path.iterdir()):
                self.remove(entry)
            self._tell("remove_empty", path)
            path.rmdir()

    def remove(self, path: Path) -> None:
        """As `Disk.remove`; a file that is not there is not told."""
        if path.exists():
            self._tell("remove", path)
            super().remove(path)


def killing_at(number: int, *, half: bool = False) -> Hook:
    """A hook that ends the process with SIGKILL before change `number`, or with `half` in the middle of that write."""
    asked: list[int] = []

    def hook(operation: Operation) -> None:
        if operation.number != number:
            return
        if half and operation.name == "write" and not asked:
            asked.append(number)
            raise Half
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    return hook


def failing_at(number: int, code: int = errno.ENOSPC, *, name: str | None = None, suffix: str = "") -> Hook:
    """A hook that fails with OSError `code` from change `number` on; only changes `name`, of files that end so.

    As the system's own errors do, those of open files do not say which file it is.
    """

    def hook(operation: Operation) -> None:
        if operation.number >= number and name in (None, operation.name) and operation.path.name.endswith(suffix):
            has_name = operation.name not in ("write", "truncate", "sync")
            raise OSError(code, os.strerror(code), *([str(operation.path)] if has_name else []))

    return hook
