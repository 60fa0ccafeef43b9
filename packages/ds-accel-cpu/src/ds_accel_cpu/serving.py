"""The ops of the level this process runs; importing this chooses the level and loads its library."""

from __future__ import annotations

from ds_accel_cpu.isa import library
from ds_accel_cpu.ops import CpuOps

__all__ = ["OPS"]

OPS = CpuOps(library())
