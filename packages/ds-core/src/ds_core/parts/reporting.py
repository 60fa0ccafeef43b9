"""Reporting: metrics to the monitors and a progress line, after every update."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from ds_core.monitors import MonitorMaster
from ds_core.part import Part, Update

if TYPE_CHECKING:
    import torch

    from ds_core.accelerator import Accelerator
    from ds_core.build import Build
    from ds_core.config import Batch

__all__ = ["Reporting"]

logger = logging.getLogger(__name__)


class Reporting(Part):
    """Writes ``Train/Samples/*`` events with the number of samples seen as their step, on the first rank."""

    name = "reporting"
    after = ("schedule",)

    def __init__(self) -> None:
        self.monitor: MonitorMaster | None = None
        self._accelerator: Accelerator | None = None
        self._batch = 0
        self._print_every: int | None = None
        self._is_first = True
        self._optimizer: torch.optim.Optimizer | None = None
        self._losses: list[torch.Tensor] = []
        self._since = time.monotonic()
        self._breakdown = False
        self._memory = False

    def prepare(self, build: Build) -> None:
        """Opens the monitors."""
        training = build.config.training
        self._is_first = build.mesh.rank("data") == 0 and build.rank == 0
        self._batch = build.config.batch.train_batch_size
        self._print_every = training.steps_per_print
        self._memory = training.memory_breakdown
        self._breakdown = training.wall_clock_breakdown
        self._accelerator = build.accelerator
        self._optimizer = build.optimizer
        self.monitor = MonitorMaster(build.config, rank=build.rank)

    def observe_loss(self, loss: torch.Tensor) -> None:
        """Keeps a detached loss of this step for the mean that is reported."""
        if self._is_first and (self._print_every is not None or (self.monitor is not None and self.monitor.enabled)):
            self._losses.append(loss.detach())

    def batch_changed(self, batch: Batch) -> None:
        """Samples a step counts from now on."""
        self._batch = batch.train_batch_size

    def after_update(self, update: Update) -> None:
        """Writes events and, every ``steps_per_print`` steps, one line."""
        losses, self._losses = self._losses, []
        if not self._is_first:
            return
        loss = sum(float(value) for value in losses) / len(losses) if losses else None
        rate = self._optimizer.param_groups[0]["lr"] if self._optimizer is not None else None
        if self.monitor is not None and self.monitor.enabled:
            events: list[tuple[str, float, int]] = []
            values = {"train_loss": loss, "lr": rate, "grad_norm": update.grad_norm}
            for name, value in values.items():
                if value is not None:
                    events.append((f"Train/Samples/{name}", float(value), update.samples))
            self.monitor.write_events(events)
        if self._print_every and update.step % self._print_every == 0:
            self._print(update, loss, rate)

    def _print(self, update: Update, loss: float | None, rate: float | None) -> None:
        now = time.monotonic()
        assert self._print_every is not None
        per_second = self._print_every * self._batch / max(now - self._since, 1e-9)
        self._since = now
        shown = {"loss": loss, "lr": rate, "grad_norm": update.grad_norm, "samples/s": per_second}
        line = ", ".join(f"{name} {value:.6g}" for name, value in shown.items() if value is not None)
        if update.skip_reason:
            line += f" (skipped: {update.skip_reason})"
        if self._memory and self._accelerator is not None:
            memory = self._accelerator.memory()
            if memory.peak_bytes is not None:
                line += f", peak memory {memory.peak_bytes / 2**20:.0f} MiB"
        logger.info("step %d: %s", update.step, line)

    def close(self) -> None:
        """Flushes and closes the monitors."""
        if self.monitor is not None:
            self.monitor.close()
