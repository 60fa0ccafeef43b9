"""Monitors."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.monitors": "MonitorMaster",
        "ds_core.monitors.base": "Monitor",
        "ds_core.monitors.tensorboard": "TensorBoardMonitor",
    },
    waiting={
        "ds-monitors": "WandbMonitor csvMonitor CometMonitor",
    },
)
