"""The flops profiler: comes with ds-profile."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-profile")
