"""Autotuning: comes with ds-tune."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-tune")
