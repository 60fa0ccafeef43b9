"""Asynchronous file I/O: `refusal` here says whether io_uring can be used, `ds_accel_cpu.aio.uring` uses it."""

from __future__ import annotations

from ds_accel_cpu.aio.support import refusal

__all__ = ["refusal"]
