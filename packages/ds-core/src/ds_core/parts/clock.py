"""Clock: how long forward, reduction, backward and step take, when ``wall_clock_breakdown`` asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from ds_core.part import Part, Update

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator
    from ds_core.build import Build

__all__ = ["Clock", "Stopwatch"]


class Stopwatch:
    """Milliseconds per phase since the last `take`. With an accelerator it waits for the device before reading."""

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self._accelerator = accelerator
        self._started: dict[str, float] = {}
        self._elapsed_ms: dict[str, float] = {}

    def now(self) -> float:
        """Seconds on a monotonic clock, after queued device work is done."""
        if self._accelerator is not None:
            self._accelerator.synchronize()
        return time.perf_counter()

    def start(self, phase: str) -> None:
        """Starts, or restarts, a phase."""
        self._started[phase] = self.now()

    def stop(self, phase: str) -> None:
        """Ends a phase and adds its time; a phase that was not started adds nothing."""
        started = self._started.pop(phase, None)
        if started is not None:
            self._elapsed_ms[phase] = self._elapsed_ms.get(phase, 0.0) + (self.now() - started) * 1e3

    def take(self) -> dict[str, float]:
        """Milliseconds per phase, and begins anew."""
        taken, self._elapsed_ms = self._elapsed_ms, {}
        return taken


class Clock(Part):
    """Comes first of all parts, so that a phase's time includes what every other part does in it.

    The step's end is marked by the part that reports it, which comes last.
    """

    name = "clock"
    before = ("precision",)

    def __init__(self) -> None:
        self._watch: Stopwatch | None = None

    def prepare(self, build: Build) -> None:
        """Makes ``build.stopwatch`` when asked to."""
        if build.config.training.wall_clock_breakdown:
            synchronized = build.config["timers"].throughput.synchronized
            self._watch = build.stopwatch = Stopwatch(build.accelerator if synchronized else None)

    def forward_context(self) -> AbstractContextManager[Any] | None:
        """Times a forward."""
        return self._timed("forward") if self._watch is not None else None

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        assert self._watch is not None
        self._watch.start(phase)
        yield
        self._watch.stop(phase)

    def before_backward(self) -> None:
        """Starts the backward."""
        if self._watch is not None:
            self._watch.start("backward")

    def after_backward(self) -> None:
        """Ends the backward."""
        if self._watch is not None:
            self._watch.stop("backward")

    def before_update(self, update: Update) -> None:
        """Starts the step."""
        if self._watch is not None:
            self._watch.start("step")
