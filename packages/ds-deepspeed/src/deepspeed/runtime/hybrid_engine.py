"""The hybrid engine: comes with ds-inference."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-inference")
