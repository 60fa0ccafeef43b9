"""`HostEvent`: a moment on the host's clock, for devices without events of their own."""

from __future__ import annotations

import time
from typing import Any

from ds_core.errors import AcceleratorError

__all__ = ["HostEvent"]


class HostEvent:
    """Has the methods of `torch.Event` that core and users call; synchronize the device first to time its work."""

    def __init__(self) -> None:
        self._at_s: float | None = None

    def record(self, stream: Any = None) -> None:
        """Marks this moment; there is no stream to mark."""
        self._at_s = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """Returns at once: later work comes after earlier work."""

    def synchronize(self) -> None:
        """Returns at once: the moment is over."""

    def query(self) -> bool:
        """True: the moment is over."""
        return True

    def elapsed_time(self, end: HostEvent) -> float:
        """Milliseconds from this moment to `end`.

        Raises:
            AcceleratorError: one of the two was never recorded.
        """
        if self._at_s is None or end._at_s is None:
            raise AcceleratorError("elapsed_time needs two recorded events; call record() on both first.")
        return (end._at_s - self._at_s) * 1e3
