"""Values of sharded tensors."""

from __future__ import annotations

from deepspeed._doors import doors
from deepspeed._fragments import BUFFERS, VALUES

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils": VALUES,
    },
    refusals=BUFFERS,
)
