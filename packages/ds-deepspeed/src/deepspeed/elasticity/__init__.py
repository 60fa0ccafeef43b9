"""Elastic training: comes with ds-elastic."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-elastic")
