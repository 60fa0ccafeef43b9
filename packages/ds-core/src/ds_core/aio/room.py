"""Room for a file, taken before it is needed, so that a full disk shows at the start of a job and not in the middle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from ds_core.errors import OffloadError

__all__ = ["NO_ROOM", "Allocate", "allocate", "take_room"]

Allocate = Callable[[int, int, int], None]
"""Allocates bytes of a file: descriptor, offset, count. Raises OSError."""

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


def allocate(fd: int, offset: int, nbytes: int) -> None:
    """posix_fallocate, or "not supported" where the system has none."""
    if not hasattr(os, "posix_fallocate"):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    os.posix_fallocate(fd, offset, nbytes)


def take_room(path: Path, start: int, nbytes: int, *, setting: str, allocate: Allocate) -> None:
    """Makes `path` reach from `start` to `start + nbytes`, with blocks of its own where the file system has them.

    Where it cannot, the room that is free is compared with what is needed, and the file grows without blocks.

    Args:
        path: the file; made if needed.
        start: bytes it has.
        nbytes: bytes to add.
        setting: the config key that decides the folder, for messages.
        allocate: allocates, or says that it cannot.

    Raises:
        OffloadError: there is not enough room, or the file cannot be made or grown.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot(path, error, setting) from error
    free = _free_bytes(path)
    try:
        if nbytes:
            allocate(fd, start, nbytes)
    except OSError as error:
        os.ftruncate(fd, start)
        if error.errno in NO_ROOM:
            raise _too_small(path, nbytes, free, error.strerror, setting) from error
        if error.errno not in _CANNOT:
            raise _cannot(path, error, setting) from error
        if free is not None and free < nbytes:
            raise _too_small(path, nbytes, free, "the file system reserves nothing", setting) from error
        os.ftruncate(fd, start + nbytes)
    finally:
        os.close(fd)


def _free_bytes(path: Path) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _too_small(path: Path, needed: int, free: int | None, reason: str | None, setting: str) -> OffloadError:
    have = "an unknown number" if free is None else f"{free}"
    return OffloadError(
        f"{setting} has too little room: {path} needs {needed} bytes more and {have} are free ({reason}). Free space on"
        f" that file system, raise the quota or file size limit, point {setting} at a larger one, or train on more"
        f" ranks so that each holds less"
    )


def _cannot(path: Path, error: OSError, setting: str) -> OffloadError:
    return OffloadError(
        f"{path} cannot be made or grown: {error.strerror}; point {setting} at a folder on a local disk that this user"
        f" may write to"
    )
