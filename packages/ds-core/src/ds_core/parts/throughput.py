"""Throughput: a timer of samples per second that programs read; nothing is measured before one asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ds_core.part import Part
from ds_core.utils.timer import ThroughputTimer

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.config import Batch
    from ds_core.engine_api import EngineApi

__all__ = ["Throughput"]


class Throughput(Part):
    """Brings ``engine.tput_timer``, which runs from the first forward of a step to the step's end."""

    name = "throughput"

    def __init__(self) -> None:
        self._build: Build | None = None
        self._timer: ThroughputTimer | None = None
        self._is_running: bool = False

    def prepare(self, build: Build) -> None:
        """Remembers how the timer is to be."""
        self._build = build

    def engine_values(self) -> Mapping[str, Callable[[], Any]]:
        """``tput_timer``."""
        return {"tput_timer": self.timer}

    def timer(self) -> ThroughputTimer:
        """The timer, which measures from the next forward on."""
        if self._timer is None:
            assert self._build is not None
            config = self._build.config
            self._timer = ThroughputTimer(config["timers"].throughput, config.batch.train_batch_size)
        return self._timer

    def batch_changed(self, batch: Batch) -> None:
        """Samples a step counts from now on."""
        if self._timer is not None:
            self._timer.batch_size = batch.train_batch_size

    def forward_context(self) -> AbstractContextManager[Any] | None:
        """Starts the timer with the first forward of a step."""
        if self._timer is not None and not self._is_running:
            self._is_running = True
            self._timer.start()
        return None

    def after_step(self, engine: EngineApi) -> None:
        """Counts the step."""
        if self._timer is not None and self._is_running:
            self._is_running = False
            self._timer.stop(global_step=True)
