"""Numbers of dtypes and reductions that the native side knows, from torch's objects."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed import ReduceOp

from ds_accel_cpu import _comm

__all__ = ["AVERAGE", "SUM", "dtype_code", "reduction_code"]

SUM, AVERAGE = 0, 1

_DTYPES = {getattr(torch, name): number for number, name in enumerate(_comm.dtypes()) if hasattr(torch, name)}
_OTHER = _comm.dtypes().index("other")
_REDUCIBLE = {getattr(torch, name) for name in _comm.reducible_dtypes()}
_REDUCTIONS = {
    ReduceOp.SUM: SUM,
    ReduceOp.AVG: AVERAGE,
    ReduceOp.PRODUCT: 2,
    ReduceOp.MIN: 3,
    ReduceOp.MAX: 4,
    ReduceOp.BAND: 5,
    ReduceOp.BOR: 6,
    ReduceOp.BXOR: 7,
}  # as enum ds_reduction in ds_kernel/reduce.h
_FLOATS_ONLY = (AVERAGE,)
_INTEGERS_ONLY = (5, 6, 7)


def dtype_code(dtype: torch.dtype) -> int:
    """The number of a dtype; one for all that have none of their own, which can be moved but not reduced."""
    return _DTYPES.get(dtype, _OTHER)


def reduction_code(op: Any, dtype: torch.dtype) -> int:
    """The number of a reduction.

    Raises:
        ValueError: this reduction of this dtype is not served. Every rank gets it before anything is sent.
    """
    code = _REDUCTIONS.get(getattr(op, "op", op))
    if code is None:
        raise ValueError(
            f"backend shm does not reduce with {op}; it has {', '.join(str(each) for each in _REDUCTIONS)}"
        )
    if dtype not in _REDUCIBLE:
        known = ", ".join(_comm.reducible_dtypes())
        raise ValueError(f"backend shm does not reduce tensors of {dtype}; it reduces {known}")
    if (code in _FLOATS_ONLY and not dtype.is_floating_point) or (code in _INTEGERS_ONLY and dtype.is_floating_point):
        kind = "floating-point" if code in _FLOATS_ONLY else "integer and boolean"
        raise ValueError(f"{op} is defined for {kind} tensors only, got {dtype}")
    return code
