"""The ``zero_optimization`` section."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_zero.config": "DeepSpeedZeroConfig=ZeroConfig",
        "ds_zero.params": "ZeroStageEnum OffloadDeviceEnum",
    },
)
