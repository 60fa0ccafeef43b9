"""Quantization kernels: comes with ds-compression."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-compression")
