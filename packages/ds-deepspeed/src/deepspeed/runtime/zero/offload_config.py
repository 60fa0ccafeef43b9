"""Names of offload's devices and states."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_zero.params": "OffloadDeviceEnum",
        "ds_core.parts.residence": "OffloadStateTypeEnum",
    },
)
