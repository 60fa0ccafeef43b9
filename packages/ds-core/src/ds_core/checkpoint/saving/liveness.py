"""Signs of life between ranks that write one checkpoint, by files in the folder they write.

Every rank that writes moves the time of change of ``rank-00003.alive`` on, from a thread of its own, so that a slow
disk is not taken for a dead rank. Who waits for another gives up when that file has stood still for too long. Clocks of
machines are never compared: only changes count.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ds_core.checkpoint.storage.disk import Disk

__all__ = ["Watch", "alive", "alive_name"]

BEAT_S = 1.0
PATIENCE_S = 60.0


def alive_name(rank: int) -> str:
    """Name of the file that a living rank touches."""
    return f"rank-{rank:05d}.alive"


@contextlib.contextmanager
def alive(work: Path, rank: int, disk: Disk) -> Iterator[None]:
    """Shows the others that this rank is at work, as long as the context lasts."""
    path = work / alive_name(rank)
    disk.close(disk.create(path))
    end = threading.Event()

    def beat() -> None:
        while not end.wait(BEAT_S):
            with contextlib.suppress(OSError):
                disk.touch(path)

    thread = threading.Thread(target=beat, name="ds-checkpoint-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


class Watch:
    """Looks at another rank's signs of life.

    Args:
        work: the folder both write in.
        rank: who is watched.
        patience_s: how long it may stand still.
    """

    def __init__(self, work: Path, rank: int, patience_s: float = PATIENCE_S) -> None:
        self._path: Path = work / alive_name(rank)
        self._patience_s: float = patience_s
        self._seen: int | None = None
        self._since_s: float = time.monotonic()

    def is_dead(self) -> bool:
        """True when nothing has changed for too long."""
        try:
            now: int | None = self._path.stat().st_mtime_ns
        except OSError:
            now = None
        if now != self._seen:
            self._seen, self._since_s = now, time.monotonic()
        return time.monotonic() - self._since_s > self._patience_s
