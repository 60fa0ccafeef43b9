"""``deepspeed.accelerator``: the device of this job under DeepSpeed's names."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "deepspeed.accelerator.real_accelerator": "get_accelerator set_accelerator is_current_accelerator_supported",
        "deepspeed.accelerator.abstract_accelerator": "DeepSpeedAccelerator",
    },
)
