"""`SwapFolder`: a folder for one process's files, gone when the process is, and the removal of those left by dead ones.

Note [Who is dead]
~~~~~~~~~~~~~~~~~~
A folder holds a marker file with the pid, the boot id and the host of its maker, who keeps it locked. The lock is the
kernel's: it ends with the process however that dies, and is seen across containers, whose pids mean nothing to each
other. A folder is removed only if nobody holds its lock, and

- the boot id is this machine's: its maker is gone; where the file system has no locks, the pid must be unknown too and
  the host the same; or
- the boot id is another one and the host is the same: the machine was started anew.

Folders of other hosts on a shared file system are left alone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import secrets
import shutil
import weakref
from pathlib import Path
from typing import Any

import psutil

from ds_core.errors import OffloadError

__all__ = ["MARKER", "PREFIX", "SwapFolder", "remove_stale"]

logger = logging.getLogger(__name__)

PREFIX = "ds-swap-"
MARKER = "ds-swap.json"
_KIND = "a folder of offloaded tensors, removed with its process"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SwapFolder:
    """A new folder, readable by this user only, until `close`, the last reference, or the end of the process.

    Args:
        parent: an existing folder on a local disk.
        rank: rank of the process, part of the name.
        setting: the config key that decides `parent`, for messages.

    Raises:
        OffloadError: `parent` is missing, no folder, or not writable.
    """

    def __init__(self, parent: Path, rank: int, setting: str) -> None:
        if not parent.is_dir():
            problem = "is not a folder" if parent.exists() else "does not exist"
            raise OffloadError(
                f"{setting} is {parent}, which {problem}; make it, or point {setting} at a folder on a local disk"
            )
        remove_stale(parent)
        self.path = parent / f"{PREFIX}rank{rank:05d}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self.path.mkdir(mode=0o700)
            marker_fd = _mark(self.path)
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise OffloadError(
                f"{setting} is {parent}, where no folder can be made ({error.strerror}); give this user the right to"
                f" write there, or point {setting} at a folder on a local disk"
            ) from error
        self._end = weakref.finalize(self, _remove, self.path, marker_fd, os.getpid())

    def close(self) -> None:
        """Removes the folder with all it holds; any number of times."""
        self._end()


def remove_stale(parent: Path) -> list[Path]:
    """Removes what dead processes of this user left in `parent`, see Note [Who is dead]; returns what it removed."""
    removed = []
    for path in sorted(parent.glob(f"{PREFIX}*")):
        marker_fd = _lock_of_dead(path)
        if marker_fd is None:
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(marker_fd)
        if not path.exists():
            removed.append(path)
            logger.info("removed %s, left by a process that is gone", path)
    return removed


def _mark(path: Path) -> int:
    """Puts a locked marker into `path`; returns the descriptor that holds the lock."""
    temporary = path / f".{MARKER}"
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        is_locked = _try_lock(fd)
        marker = {"kind": _KIND, "pid": os.getpid(), "boot": _boot_id(), "host": platform.node(), "locked": is_locked}
        os.write(fd, json.dumps(marker).encode())
        temporary.rename(path / MARKER)  # it is locked and whole when others first see it
    except OSError:
        os.close(fd)
        raise
    return fd


def _lock_of_dead(path: Path) -> int | None:
    """The locked marker of a folder whose maker is dead; None for everything else."""
    try:
        if path.is_symlink() or path.stat().st_uid != os.geteuid():
            return None
        fd = os.open(path / MARKER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        marker = json.loads(os.read(fd, 4096))
    except (OSError, ValueError):
        marker = None
    if _is_dead(marker, _try_lock(fd)):
        return fd
    os.close(fd)
    return None


def _is_dead(marker: Any, got_lock: bool) -> bool:
    if not isinstance(marker, dict) or marker.get("kind") != _KIND or not isinstance(marker.get("pid"), int):
        return False
    if marker.get("locked") and not got_lock:
        return False
    is_same_host = marker.get("host") == platform.node()
    if marker.get("boot") != _boot_id():
        return is_same_host
    return bool(marker.get("locked")) or (is_same_host and not psutil.pid_exists(marker["pid"]))


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def _remove(path: Path, marker_fd: int, pid: int) -> None:
    if os.getpid() != pid:  # a forked child ends; the folder is its parent's
        return
    shutil.rmtree(path, ignore_errors=True)
    os.close(marker_fd)
    if path.exists():
        logger.warning("%s could not be removed; remove it by hand", path)
