"""Ctrl-C and SIGTERM as a wish to stop after the current step, not in the middle of it."""

from __future__ import annotations

import signal
from types import FrameType


class StopWish:
    """Remembers the first signal. The training loop asks, and all ranks agree on what they heard."""

    def __init__(self) -> None:
        self.signal: int = 0
        """Number of the signal that came; 0 while none has."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
