"""Helpers of checkpoints."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils.tensors": "clone_tensors_for_torch_save",
    },
)
