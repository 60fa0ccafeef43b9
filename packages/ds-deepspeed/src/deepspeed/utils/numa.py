"""Cores and memory nodes."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.launch.numa": "get_numactl_cmd get_numa_cores",
    },
)
