"""Ops of ds-core's table that the kernel libraries of this wheel have. A test compares it with their op tables."""

from __future__ import annotations

__all__ = ["OPS"]

OPS = ("sum_of_squares",)
