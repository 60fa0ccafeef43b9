"""The ops of the level this process runs; importing this chooses the level, loads its library and finds threads."""

from __future__ import annotations

from ds_accel_cpu.isa import library
from ds_accel_cpu.ops import CpuOps
from ds_accel_cpu.threads import borrow_from_torch

__all__ = ["OPS"]

OPS = CpuOps(library())

borrow_from_torch()
