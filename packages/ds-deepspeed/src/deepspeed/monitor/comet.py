"""Comet: comes with ds-monitors."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-monitors")
