"""Evoformer attention: comes with ds-science."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-science")
