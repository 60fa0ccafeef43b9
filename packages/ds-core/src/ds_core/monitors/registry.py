"""The metric sinks that ds-core brings, as data."""

from __future__ import annotations

from ds_core.hooks import MonitorEntry

__all__ = ["ENTRIES"]

ENTRIES: tuple[MonitorEntry, ...] = (
    MonitorEntry("tensorboard", "tensorboard", "ds_core.monitors.tensorboard:TensorBoardMonitor"),
    MonitorEntry("jsonl", "jsonl_monitor", "ds_core.monitors.jsonl:JsonlMonitor"),
)
