"""Files straight to a GPU: comes with ds-accel-cuda."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-accel-cuda")
