"""`Disk`: every operation on files that a checkpoint makes, in one place, so that tests can pass in one that fails.

Note [Files that hold no one up]
    Files are opened without following a symbolic link and refused unless they are regular, so that a hostile folder
    can neither lead elsewhere nor block on a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from ds_core.errors import CheckpointError

__all__ = ["DISK", "Disk"]

_NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)


class Disk:
    """The operating system's own calls. What fails raises OSError with the path in it."""

    def create(self, path: Path, *, direct: bool = False) -> int:
        """A descriptor of a new, empty file; past the page cache where `direct` is asked for and possible."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        if direct and hasattr(os, "O_DIRECT"):
            try:
                return os.open(path, flags | os.O_DIRECT, 0o644)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        return os.open(path, flags, 0o644)

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        """Writes some or all of `view`; the number of bytes written.

        What the system refuses past the page cache goes through it: file systems differ in what they take, and a full
        disk or a limit on the length of files may leave part of a sector, after which nothing else is taken.
        """
        try:
            return os.pwrite(fd, view, offset)
        except OSError as error:
            if error.errno not in _NO_DIRECT or not _leave_direct(fd):
                raise
            return os.pwrite(fd, view, offset)

    def truncate(self, fd: int, nbytes: int) -> None:
        """Cuts a file to `nbytes`."""
        os.ftruncate(fd, nbytes)

    def sync(self, fd: int) -> None:
        """Makes what was written durable."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Gives a descriptor back."""
        os.close(fd)

    def sync_folder(self, path: Path) -> None:
        """Makes new names and renames in a folder durable."""
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Gives `source` the name `target`, replacing a file or an empty folder of that name, at once."""
        source.replace(target)

    def make_folder(self, path: Path) -> None:
        """A new folder; its parents are made too."""
        path.mkdir(parents=True)

    def remove_folder(self, path: Path) -> None:
        """Deletes a folder with all that is in it, of a link the link; nothing when it is not there."""
        with contextlib.suppress(FileNotFoundError):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path)

    def remove(self, path: Path) -> None:
        """Deletes a file; nothing when it is not there."""
        path.unlink(missing_ok=True)

    def touch(self, path: Path) -> None:
        """Moves a file's time of change on."""
        os.utime(path)

    def free_bytes(self, path: Path) -> int:
        """What an ordinary user may still write below `path`."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def open(self, path: Path, *, follow: bool = False) -> int:
        """A descriptor for reading a regular file.

        Args:
            path: the file.
            follow: take what a symbolic link leads to.

        Raises:
            CheckpointError: it is a symbolic link, a pipe, a device or a folder.
        """
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
        try:
            fd = os.open(path, flags)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise CheckpointError(f"{path} is not a regular file; a checkpoint consists of regular files") from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CheckpointError(f"{path} is not a regular file; a checkpoint consists of regular files")
        return fd

    def length(self, fd: int) -> int:
        """Bytes in an open file."""
        return os.fstat(fd).st_size

    def read(self, fd: int, view: memoryview, offset: int) -> int:
        """Reads into `view`; the number of bytes read, 0 at the end of the file."""
        return os.preadv(fd, [view], offset)


def _leave_direct(fd: int) -> bool:
    """Lets a file go through the page cache from now on; False when it does already."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct:
        return False
    import fcntl  # not on systems that have no O_DIRECT

    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not flags & direct:
        return False
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~direct)
    return True


DISK = Disk()
"""What is used unless another is passed in."""
