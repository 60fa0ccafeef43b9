"""Ranges for profilers."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils.ranges": "instrument_w_nvtx",
    },
)
