"""What ``/proc`` says of processes: who is whose child, who still runs, and which signals are handled."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["children", "is_running", "listens"]

_PROC = Path("/proc")


def children() -> list[int]:
    """Process ids of this process's children that still run; none where there is no ``/proc``."""
    mine = str(os.getpid())
    numbers = (int(entry.name) for entry in _PROC.glob("[0-9]*"))
    return sorted(pid for pid in numbers if _stat(pid)[1:2] == [mine] and is_running(pid))


def is_running(pid: int) -> bool:
    """Whether the process has not ended; one that ended and was not waited for has."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def listens(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for signal `number`; False when that cannot be known."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (number - 1) & 1)


def _stat(pid: int) -> list[str]:
    """State, parent, and what follows in ``/proc/<pid>/stat``; empty when the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
