"""Passes signals from an agent on to its ranks: to each rank alone, and only where it is listened to.

torchrun would signal a rank's whole process group, data-loading workers too, whose end makes a rank fail that is about
to save. And a rank that has no handler yet, or never will, would be ended by a signal that is meant to be harmless.
What a process handles is read from ``/proc``; without it (no Linux) an agent does not use this.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException

from ds_core.launch.listening import children, is_running, listens

__all__ = ["Passing"]


class Passing:
    """Handles SIGTERM, SIGUSR1 and SIGUSR2 in an agent, from `install` on.

    Args:
        grace_s: how long ranks may take to end after SIGTERM, to write a checkpoint.
        are_preempted: asked when they have ended, whether all of them left because they saved and stopped.
    """

    def __init__(self, grace_s: float, are_preempted: Callable[[], bool]) -> None:
        self._grace_s: float = grace_s
        self._are_preempted: Callable[[], bool] = are_preempted
        self._is_stopping: bool = False

    def install(self) -> None:
        """Takes the signals."""
        signal.signal(signal.SIGTERM, self._stop)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        ranks = children()
        deaf = [pid for pid in ranks if not listens(pid, number)]
        for pid in ranks:
            if pid not in deaf:
                _send(os.kill, pid, number)
        if deaf or not ranks:
            name, count = signal.Signals(number).name, f"{len(deaf)} of {len(ranks)} ranks" if ranks else "ranks"
            sys.stderr.write(f"ds run: {name} is not passed on to {count} that do not handle it (yet)\n")

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Ends the ranks. Stays here until they have ended, so that torchrun restarts none of them meanwhile."""
        if self._is_stopping:  # a scheduler that signals every process of a job, and `ds run` that passes it on
            return
        self._is_stopping = True
        ranks = children()
        for pid in ranks:
            _send(os.kill if listens(pid, number) else os.killpg, pid, number)
        deadline = time.monotonic() + self._grace_s
        while time.monotonic() < deadline and any(is_running(pid) for pid in ranks):
            time.sleep(0.05)
        late = [pid for pid in ranks if is_running(pid)]
        if late:
            sys.stderr.write(f"ds run: {len(late)} of {len(ranks)} ranks did not end in {self._grace_s:g} s: killed\n")
        for pid in late:
            _send(os.killpg, pid, signal.SIGKILL)
        if not ranks or not self._are_preempted():  # else torchrun finds that its ranks have ended well
            raise SignalException(f"agent {os.getpid()} got {number}", sigval=signal.Signals(number))


def _send(how: Callable[[int, int], None], pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        how(pid, number)
