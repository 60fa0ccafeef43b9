"""The kernel that reduces tensors of several ranks to one, as the native side and as Python call it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ds_accel_cpu.isa import library
from ds_accel_cpu.launching import callable_kernel
from ds_core.ops.calls.kernels import CallableKernel, code

__all__ = ["kernel_address", "reduce_tensors"]

_NAME = "reduce_ranks"


def kernel_address() -> int:
    """Its row in the library of this process.

    Raises:
        DsError: no library can be loaded here.
    """
    return library().kernels[_NAME].address


@functools.cache
def _kernel() -> CallableKernel:
    return callable_kernel(library(), _NAME)


def reduce_tensors(inputs: Sequence[torch.Tensor], output: torch.Tensor, op: int) -> None:
    """The inputs reduced from the first to the last; narrow floats in float32, rounded once.

    Args:
        inputs: contiguous, of one size and dtype.
        output: contiguous; may be one of the inputs.
        op: a number of `codes`.
    """
    addresses = torch.tensor([each.data_ptr() for each in inputs], dtype=torch.int64)
    _kernel()(
        output.device,
        dtype=code(output.dtype),
        op=op,
        count=len(inputs),
        numel=output.numel(),
        inputs=addresses.data_ptr(),
        out=output.data_ptr(),
        copy=0,
        past_caches=0,
    )
