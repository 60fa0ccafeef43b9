"""``deepspeed.ops``: optimizers and kernels."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    waiting={
        "ds-inference": "transformer",
        "ds-sequence": "sparse_attention",
    },
    refusals={
        "__compatible_ops__": "kernels are compiled ahead; ds ops lists them",
    },
)
