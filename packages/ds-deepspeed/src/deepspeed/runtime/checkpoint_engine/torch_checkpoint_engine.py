"""Engines that write checkpoints: comes with ds-checkpoint."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-checkpoint")
