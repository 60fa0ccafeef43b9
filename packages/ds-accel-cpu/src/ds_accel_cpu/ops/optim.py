"""Optimizers, and what they read."""

from __future__ import annotations

import torch

from ds_accel_cpu.ops._base import Kernels, address, code
from ds_core.ops._adam import scalars
from ds_core.ops.native import KernelLibrary

__all__ = ["OptimOps"]


class OptimOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary) -> None:
        super().__init__(library)
        self._adam = self.kernel("adam_")
        self._sum_of_squares = self.kernel("sum_of_squares")

    def adam_(
        self,
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
        self._adam(
            param_dtype=code(param),
            grad_dtype=code(grad),
            state_dtype=code(exp_avg),
            copy_dtype=code(copy_out),
            adamw=adamw,
            numel=param.numel(),
            param=address(param),
            grad=address(grad),
            exp_avg=address(exp_avg),
            exp_avg_sq=address(exp_avg_sq),
            copy_out=address(copy_out),
            grad_factor=address(grad_factor),
            **scalars(lr, beta1, beta2, eps, weight_decay, step, bias_correction)._asdict(),
            rounding_seed=rounding_seed,
            rounding_offset=rounding_offset,
        )

    def sum_of_squares(self, x: torch.Tensor) -> torch.Tensor:
        """See `ds_core.ops.sum_of_squares`."""
        out = torch.empty((), dtype=torch.float64)
        self._sum_of_squares(dtype=code(x), numel=x.numel(), x=address(x), out=address(out))
        return out
