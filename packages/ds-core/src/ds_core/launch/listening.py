"""What the system says of processes: whose children still run, and, from ``/proc``, which signals one handles."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["children", "is_running", "listens"]

_PROC = Path("/proc")


def children() -> list[int]:
    """Process ids of this process's children that still run."""
    return sorted(child.pid for child in psutil.Process().children() if is_running(child.pid))


def is_running(pid: int) -> bool:
    """Whether the process has not ended; one that ended and was not waited for has."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def listens(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for signal `number`; False when that cannot be known."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (number - 1) & 1)
