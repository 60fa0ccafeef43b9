"""The experts."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_moe.experts": "Experts",
    },
)
