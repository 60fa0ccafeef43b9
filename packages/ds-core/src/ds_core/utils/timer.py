"""Timers a training script can use: by name, waiting for the device; and throughput in samples per second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ds_core import accelerator as accelerators
from ds_core.errors import EngineError
from ds_core.utils.logs import log_dist

__all__ = ["NoopTimer", "SynchronizedWallClockTimer", "ThroughputTimer", "Timer", "trim_mean"]

logger = logging.getLogger(__name__)


def trim_mean(data: Sequence[float], trim_percent: float) -> float:
    """The mean of what is left when this fraction of the smallest and of the largest values is cut off; 0 of none."""
    cut = int(trim_percent * len(data))
    kept = sorted(data)[cut : len(data) - cut]
    return sum(kept) / len(kept) if kept else 0.0


def _now_s() -> float:
    accelerators.current().synchronize()
    return time.perf_counter()


class Timer:
    """One named time. Starting and stopping wait for the device."""

    def __init__(self, name: str) -> None:
        self.name_: str = name
        self.started_: bool = False
        self._start_s: float = 0.0
        self._elapsed_s: float = 0.0
        self._records_ms: list[float] = []

    def start(self) -> None:
        """Begins.

        Raises:
            EngineError: it runs already.
        """
        if self.started_:
            raise EngineError(f"timer {self.name_!r} runs already; stop it before it is started again")
        self._start_s = _now_s()
        self.started_ = True

    def stop(self, reset: bool = False, record: bool = False) -> None:
        """Ends; adds to what was measured, or takes its place with `reset`. `record` keeps it for `mean`.

        Raises:
            EngineError: it does not run.
        """
        if not self.started_:
            raise EngineError(f"timer {self.name_!r} does not run; start it first")
        took_s = _now_s() - self._start_s
        self._elapsed_s = took_s if reset else self._elapsed_s + took_s
        self.started_ = False
        if record:
            self._records_ms.append(took_s * 1e3)

    def reset(self) -> None:
        """Forgets what was measured."""
        self.started_, self._elapsed_s, self._records_ms = False, 0.0, []

    def elapsed(self, reset: bool = True) -> float:
        """Milliseconds measured so far; a running timer goes on running."""
        was_running = self.started_
        if was_running:
            self.stop()
        found = self._elapsed_s * 1e3
        if reset:
            self._elapsed_s = 0.0
        if was_running:
            self.start()
        return found

    def mean(self) -> float:
        """Milliseconds of a recorded interval on average, without the tenth at both ends."""
        return trim_mean(self._records_ms, 0.1)


class SynchronizedWallClockTimer:
    """Timers by name: ``timers("forward").start()``."""

    def __init__(self) -> None:
        self.timers: dict[str, Timer] = {}

    def __call__(self, name: str) -> Timer:
        return self.timers.setdefault(name, Timer(name))

    def get_timers(self) -> dict[str, Timer]:
        """All of them."""
        return self.timers

    def has_timer(self, name: str) -> bool:
        """Whether there is one of this name."""
        return name in self.timers

    @staticmethod
    def memory_usage() -> str:
        """What the device says of its memory, for a line of a log."""
        memory = accelerators.current().memory()
        if memory.allocated_bytes is None:
            return "the device says nothing of its memory"
        peak = memory.peak_bytes or memory.allocated_bytes
        return f"allocated {memory.allocated_bytes / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB"

    def log(
        self,
        names: Sequence[str],
        normalizer: float = 1.0,
        reset: bool = True,
        memory_breakdown: bool = False,
        ranks: Sequence[int] | None = None,
    ) -> None:
        """Logs the milliseconds of the named timers that there are, divided by `normalizer`, on `ranks` (default 0)."""
        rows = [
            f"{name}: {self.timers[name].elapsed(reset=reset) / normalizer:.2f}"
            for name in names
            if name in self.timers
        ]
        memory = f" | {self.memory_usage()}" if memory_breakdown else ""
        log_dist(f"time (ms) | {' | '.join(rows)}{memory}", ranks=ranks or [0])

    def get_mean(self, names: Sequence[str], normalizer: float = 1.0, reset: bool = True) -> dict[str, float]:
        """Milliseconds on average, by name, of the named timers that there are."""
        found = {name: self.timers[name].mean() / normalizer for name in names if name in self.timers}
        if reset:
            for name in found:
                self.timers[name].reset()
        return found


class NoopTimer:
    """Looks like `SynchronizedWallClockTimer` and measures nothing."""

    class Timer:
        """Measures nothing."""

        def start(self) -> None:
            """Does nothing."""

        def stop(self, **_: Any) -> None:
            """Does nothing."""

        def reset(self) -> None:
            """Does nothing."""

        def elapsed(self, **_: Any) -> float:
            """0."""
            return 0.0

        def mean(self) -> float:
            """0."""
            return 0.0

    def __init__(self) -> None:
        self.timer: NoopTimer.Timer = NoopTimer.Timer()

    def __call__(self, name: str) -> NoopTimer.Timer:
        return self.timer

    def get_timers(self) -> dict[str, Any]:
        """None."""
        return {}

    def has_timer(self, name: str) -> bool:
        """True: any may be asked for."""
        return True

    def log(self, names: Sequence[str], **_: Any) -> None:
        """Does nothing."""

    def get_mean(self, names: Sequence[str], **_: Any) -> dict[str, float]:
        """None."""
        return {}


class ThroughputTimer:
    """Samples per second over the steps after the first few.

    Args:
        config: anything with ``enabled`` and ``synchronized``, such as ``timers.throughput`` of a config.
        batch_size: samples of a step.
        start_step: steps that do not count, while things warm up.
        steps_per_output: steps between two lines of log; None logs nothing.
        monitor_memory: say what memory is in use, too.
        logging_fn: what writes the lines.
    """

    def __init__(
        self,
        config: Any,
        batch_size: int,
        start_step: int = 2,
        steps_per_output: int | None = None,
        monitor_memory: bool = False,
        logging_fn: Callable[[str], None] | None = None,
    ) -> None:
        self.enabled: bool = bool(getattr(config, "enabled", True))
        self.batch_size: int = max(batch_size, 1)
        self.start_step: int = start_step
        self.steps_per_output: int | None = steps_per_output
        self.global_step_count: int = 0
        self.total_elapsed_time: float = 0.0
        self._synchronized: bool = bool(getattr(config, "synchronized", True))
        self._monitor_memory: bool = monitor_memory
        self._write: Callable[[str], None] = logging_fn or logger.info
        self._started_s: float | None = None

    def _now_s(self) -> float:
        return _now_s() if self._synchronized else time.perf_counter()

    def start(self) -> None:
        """A micro-batch begins."""
        if self.enabled and self.global_step_count >= self.start_step:
            self._started_s = self._now_s()

    def stop(self, global_step: bool = False, report_speed: bool = True) -> None:
        """A micro-batch ends; with `global_step` a step does too."""
        if not self.enabled:
            return
        if self._started_s is not None:
            self.total_elapsed_time += self._now_s() - self._started_s
            self._started_s = None
        if not global_step:
            return
        self.global_step_count += 1
        every = self.steps_per_output
        if report_speed and every and self.global_step_count % every == 0:
            memory = f", {SynchronizedWallClockTimer.memory_usage()}" if self._monitor_memory else ""
            self._write(f"step {self.global_step_count}: {self.avg_samples_per_sec():.2f} samples/s{memory}")

    def avg_samples_per_sec(self) -> float:
        """Samples per second on average; minus infinity before any step counted."""
        steps = self.global_step_count - self.start_step
        if steps <= 0 or self.total_elapsed_time <= 0:
            return float("-inf")
        return self.batch_size * steps / self.total_elapsed_time
