"""Universal checkpoints: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(
    __name__,
    "every checkpoint of ds-core loads at any world size, stage and mesh; ds checkpoint convert reads universal ones",
)
