"""Where training metrics go: sinks by config section, and one object that writes to all of them."""

from ds_core.monitors.base import Event, Monitor
from ds_core.monitors.events import peak_memory, train_events
from ds_core.monitors.jsonl import JsonlMonitor
from ds_core.monitors.master import MonitorMaster, is_asked
from ds_core.monitors.tensorboard import TensorBoardMonitor

__all__ = [
    "Event",
    "JsonlMonitor",
    "Monitor",
    "MonitorMaster",
    "TensorBoardMonitor",
    "is_asked",
    "peak_memory",
    "train_events",
]
