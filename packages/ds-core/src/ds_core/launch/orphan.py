"""End with one's parent: a launcher that is killed must not leave ranks behind on the devices."""

from __future__ import annotations

import os
import signal
import threading
import time

__all__ = ["end_with_parent"]

GRACE_S = 10.0


def end_with_parent() -> None:
    """Start a thread that sends this process SIGTERM when its parent is gone, and SIGKILL `GRACE_S` later."""
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), daemon=True, name="ds-parent-watch").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
