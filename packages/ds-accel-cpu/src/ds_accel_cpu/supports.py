"""Calls that the kernels here do not serve, and why: the reference runs them."""

from __future__ import annotations

__all__ = ["linear_weight_only"]


def linear_weight_only(*arguments: object, format: str = "integer", **named: object) -> str | None:
    """Weights of small floats are for devices that have kernels for them."""
    if len(arguments) > 8:
        format = str(arguments[8])
    return None if format == "integer" else f"its kernels multiply with integer weights, not with {format}"
