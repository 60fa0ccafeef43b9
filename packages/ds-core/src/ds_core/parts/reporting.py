"""Reporting: metrics to the monitors and a progress line, after every update."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from ds_core.monitors import MonitorMaster, is_asked
from ds_core.monitors.events import elapsed_ms, train_events
from ds_core.part import Part, Update, overrides

if TYPE_CHECKING:
    import torch

    from ds_core.build import Build
    from ds_core.config import Batch
    from ds_core.engine_api import EngineApi

__all__ = ["Reporting"]

logger = logging.getLogger(__name__)


class Reporting(Part):
    """Writes ``Train/Samples/*`` events with the number of samples seen as their step, on the first rank.

    Attributes:
        monitor: where events go; scripts may write their own through it.
    """

    name = "reporting"
    after = ("schedule",)

    def __init__(self) -> None:
        self.monitor: MonitorMaster | None = None
        self._build: Build | None = None
        self._batch = 0
        self._print_every: int | None = None
        self._losses: list[torch.Tensor] = []
        self._since = time.monotonic()

    def prepare(self, build: Build) -> None:
        """Opens the monitors."""
        self._build = build
        self._batch = build.config.batch.train_batch_size
        self._print_every = build.config.training.steps_per_print if build.rank == 0 else None
        self.monitor = build.monitor = MonitorMaster(build.config, rank=build.rank, manager=build.manager)
        build.is_monitored = is_asked(build.config, build.manager)

    @property
    def _is_heard(self) -> bool:
        return self._print_every is not None or (self.monitor is not None and self.monitor.enabled)

    def observe_loss(self, loss: torch.Tensor) -> None:
        """Keeps a detached loss of this step for the mean that is reported."""
        if self._is_heard:
            self._losses.append(loss.detach())

    def batch_changed(self, batch: Batch) -> None:
        """Samples a step counts from now on."""
        self._batch = batch.train_batch_size

    def after_update(self, update: Update) -> None:
        """Writes events and, every ``steps_per_print`` steps, one line."""
        build = self._build
        assert build is not None
        times = {}
        if build.stopwatch is not None:
            build.stopwatch.stop("step")
            times = build.stopwatch.take()
        if not self._is_heard:
            return
        losses, self._losses = self._losses, []
        loss = sum(float(value) for value in losses) / len(losses) if losses else None
        rate = build.optimizer.param_groups[0]["lr"] if build.optimizer is not None else None
        scale = build.loss_scale if build.config["fp16"].enabled else None
        if self.monitor is not None and self.monitor.enabled:
            events = train_events(update.samples, loss=loss, lr=rate, loss_scale=scale, grad_norm=update.grad_norm)
            events += [(elapsed_ms(phase), value, update.samples) for phase, value in times.items()]
            self.monitor.write_events(events)
        if self._print_every and update.step % self._print_every == 0:
            self._print(update, {"loss": loss, "lr": rate, "grad_norm": update.grad_norm, "loss_scale": scale}, times)

    def after_step(self, engine: EngineApi) -> None:
        """Writes what other parts have measured of this step."""
        update = engine._last_update
        if self.monitor is None or not self.monitor.enabled or update is None:
            return
        rows = [row for measured in overrides(engine.parts, "metrics") for row in measured(update)]
        if rows:
            self.monitor.write_events([(name, value, update.samples) for name, value in rows])

    def _print(self, update: Update, shown: dict[str, float | None], times: dict[str, float]) -> None:
        build = self._build
        assert build is not None
        assert self._print_every is not None
        now = time.monotonic()
        if build.config["timers"].throughput.enabled:
            shown["samples/s"] = self._print_every * self._batch / max(now - self._since, 1e-9)
        self._since = now
        line = ", ".join(f"{name} {value:.6g}" for name, value in shown.items() if value is not None)
        if update.skip_reason:
            line += f" (skipped: {update.skip_reason})"
        if times:
            line += "; " + ", ".join(f"{phase} {value:.2f} ms" for phase, value in times.items())
        if build.config.training.memory_breakdown:
            memory = build.accelerator.memory()
            held = {"now": memory.allocated_bytes, "peak": memory.peak_bytes}
            known = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in held.items() if size is not None)
            line += f"; memory {known or 'unknown'}"
        logger.info("step %d: %s", update.step, line)

    def close(self) -> None:
        """Flushes and closes the monitors."""
        if self.monitor is not None:
            self.monitor.close()
