"""Conversion to universal checkpoints: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(
    __name__,
    "every checkpoint loads at any world size, stage and mesh; ds checkpoint convert reads DeepSpeed's",
)
