"""Conversion to universal checkpoints: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(
    __name__,
    "every checkpoint of ds-core loads at any world size, stage and mesh, so there is nothing to convert; ds checkpoint convert reads DeepSpeed's",
)
