"""Facts of the installed torch."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils.compiling": "required_torch_version",
    },
)
