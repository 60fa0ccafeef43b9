"""The ops of the level this process runs; importing this chooses the level, loads its library and finds threads."""

from __future__ import annotations

from ds_accel_cpu.isa import library
from ds_accel_cpu.launching import cpu_ops
from ds_accel_cpu.threads import borrow_from_torch

__all__ = ["OPS"]

OPS = cpu_ops(library())

borrow_from_torch()
