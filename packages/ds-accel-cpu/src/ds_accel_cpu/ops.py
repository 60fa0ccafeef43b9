"""The ops of ds-core on the CPU: torch tensors in, raw addresses out to the kernels. Arguments were checked already."""

from __future__ import annotations

import torch

from ds_accel_cpu import _binding
from ds_accel_cpu.isa import library
from ds_core.ops._adam import scalars
from ds_core.ops.native import DTYPE_CODES

__all__ = ["adam_", "sum_of_squares"]

_CODE = {getattr(torch, name): code for name, code in DTYPE_CODES.items()}
_KERNELS = library().kernels
_ADAM = _binding.Adam(_KERNELS["adam_"].address)
_SUM_OF_SQUARES = _binding.SumOfSquares(_KERNELS["sum_of_squares"].address)


def adam_(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    adamw: bool = True,
    bias_correction: bool = True,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    """See `ds_core.ops.adam_`."""
    _ADAM(
        param.data_ptr(),
        grad.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        0 if copy_out is None else copy_out.data_ptr(),
        0 if grad_factor is None else grad_factor.data_ptr(),
        param.numel(),
        _CODE[param.dtype],
        _CODE[grad.dtype],
        _CODE[exp_avg.dtype],
        0 if copy_out is None else _CODE[copy_out.dtype],
        adamw,
        *scalars(lr, beta1, beta2, eps, weight_decay, step, bias_correction),
        rounding_seed,
        rounding_offset,
        torch.get_num_threads(),
    )


def sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    """See `ds_core.ops.sum_of_squares`."""
    out = torch.empty((), dtype=torch.float32)
    _SUM_OF_SQUARES(x.data_ptr(), out.data_ptr(), x.numel(), _CODE[x.dtype], torch.get_num_threads())
    return out
