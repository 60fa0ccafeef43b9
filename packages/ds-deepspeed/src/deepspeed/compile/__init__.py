"""Compiler passes: comes with ds-compile."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-compile")
