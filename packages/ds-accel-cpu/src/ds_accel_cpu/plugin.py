"""What ds-accel-cpu brings to ds-core."""

from __future__ import annotations

from collections.abc import Iterable

from ds_core.hooks import OpImpl, hookimpl

DS_HOOK_API = (1, 0)

_OPS = ("adam_", "sum_of_squares")


@hookimpl
def ds_ops() -> Iterable[OpImpl]:
    """Native kernels for every op of the table."""
    return [OpImpl(op, "cpu", load=f"ds_accel_cpu.ops:{op}") for op in _OPS]
