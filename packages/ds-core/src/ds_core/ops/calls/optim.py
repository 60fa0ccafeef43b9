"""Optimizers, and what they read."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from ds_core.ops._adagrad import adagrad_scalars
from ds_core.ops._adam import scalars
from ds_core.ops._lamb import lamb_scalars
from ds_core.ops._lion import lion_scalars
from ds_core.ops._sgd import sgd_scalars
from ds_core.ops.calls.kernels import Kernels, Launcher, address, code
from ds_core.ops.native import KernelLibrary

__all__ = ["OptimOps"]


class OptimOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._adam = self.kernel("adam_")
        self._adam8bit = self.kernel("adam8bit_")
        self._adagrad = self.kernel("adagrad_")
        self._lamb_moments = self.kernel("lamb_moments_")
        self._lamb_apply = self.kernel("lamb_apply_")
        self._lion = self.kernel("lion_")
        self._sgd = self.kernel("sgd_")
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
            param.device,
            **_tensors(param, grad, copy_out, grad_factor, rounding_seed, rounding_offset),
            state_dtype=code(exp_avg),
            adamw=adamw,
            exp_avg=address(exp_avg),
            exp_avg_sq=address(exp_avg_sq),
            **scalars(lr, beta1, beta2, eps, weight_decay, step, bias_correction)._asdict(),
        )

    def adam8bit_(
        self,
        param: torch.Tensor,
        grad: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        exp_avg_scale: torch.Tensor,
        exp_avg_sq_scale: torch.Tensor,
        copy_out: torch.Tensor | None = None,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
        block_size: int = 2048,
        adamw: bool = True,
        bias_correction: bool = True,
        grad_factor: torch.Tensor | None = None,
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> None:
        """See `ds_core.ops.adam8bit_`."""
        self._adam8bit(
            param.device,
            **_tensors(param, grad, copy_out, grad_factor, rounding_seed, rounding_offset),
            adamw=adamw,
            block_size=block_size,
            exp_avg=address(exp_avg),
            exp_avg_sq=address(exp_avg_sq),
            exp_avg_scale=address(exp_avg_scale),
            exp_avg_sq_scale=address(exp_avg_sq_scale),
            **scalars(lr, beta1, beta2, eps, weight_decay, step, bias_correction)._asdict(),
        )

    def adagrad_(
        self,
        param: torch.Tensor,
        grad: torch.Tensor,
        state_sum: torch.Tensor,
        copy_out: torch.Tensor | None = None,
        *,
        lr: float,
        eps: float,
        weight_decay: float,
        step: int,
        lr_decay: float = 0.0,
        grad_factor: torch.Tensor | None = None,
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> None:
        """See `ds_core.ops.adagrad_`."""
        self._adagrad(
            param.device,
            **_tensors(param, grad, copy_out, grad_factor, rounding_seed, rounding_offset),
            state_dtype=code(state_sum),
            state_sum=address(state_sum),
            **adagrad_scalars(lr, eps, weight_decay, step, lr_decay)._asdict(),
        )

    def lamb_moments_(
        self,
        param: torch.Tensor,
        grad: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        bounds: Sequence[int],
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
        bias_correction: bool = True,
        eps_inside_sqrt: bool = False,
        grad_factor: torch.Tensor | None = None,
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> torch.Tensor:
        """See `ds_core.ops.lamb_moments_`."""
        sums = torch.empty((len(bounds) // 2, 2), dtype=torch.float64, device=param.device)
        flat = array("q", bounds)
        self._lamb_moments(
            param.device,
            param_dtype=code(param),
            grad_dtype=code(grad),
            state_dtype=code(exp_avg),
            eps_inside_sqrt=eps_inside_sqrt,
            numel=param.numel(),
            segment_count=len(bounds) // 2,
            bounds=flat.buffer_info()[0],
            param=address(param),
            grad=address(grad),
            exp_avg=address(exp_avg),
            exp_avg_sq=address(exp_avg_sq),
            sums=address(sums),
            grad_factor=address(grad_factor),
            beta1=beta1,
            weight1=1 - beta1,
            beta2=beta2,
            weight2=1 - beta2,
            **lamb_scalars(beta1, beta2, eps, weight_decay, step, bias_correction)._asdict(),
            rounding_seed=rounding_seed,
            rounding_offset=rounding_offset,
        )
        return sums

    def lamb_apply_(
        self,
        param: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        ratios: torch.Tensor,
        bounds: Sequence[int],
        copy_out: torch.Tensor | None = None,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
        bias_correction: bool = True,
        eps_inside_sqrt: bool = False,
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> None:
        """See `ds_core.ops.lamb_apply_`."""
        flat = array("q", bounds)
        self._lamb_apply(
            param.device,
            param_dtype=code(param),
            state_dtype=code(exp_avg),
            copy_dtype=code(copy_out),
            eps_inside_sqrt=eps_inside_sqrt,
            numel=param.numel(),
            segment_count=len(bounds) // 2,
            bounds=flat.buffer_info()[0],
            ratios=address(ratios),
            param=address(param),
            exp_avg=address(exp_avg),
            exp_avg_sq=address(exp_avg_sq),
            copy_out=address(copy_out),
            negative_lr=-lr,
            **lamb_scalars(beta1, beta2, eps, weight_decay, step, bias_correction)._asdict(),
            rounding_seed=rounding_seed,
            rounding_offset=rounding_offset,
        )

    def lion_(
        self,
        param: torch.Tensor,
        grad: torch.Tensor,
        exp_avg: torch.Tensor,
        copy_out: torch.Tensor | None = None,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        weight_decay: float,
        grad_factor: torch.Tensor | None = None,
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> None:
        """See `ds_core.ops.lion_`."""
        self._lion(
            param.device,
            **_tensors(param, grad, copy_out, grad_factor, rounding_seed, rounding_offset),
            state_dtype=code(exp_avg),
            exp_avg=address(exp_avg),
            **lion_scalars(lr, beta1, beta2, weight_decay)._asdict(),
        )

    def sgd_(
        self,
        param: torch.Tensor,
        grad: torch.Tensor,
        momentum_buffer: torch.Tensor | None = None,
        copy_out: torch.Tensor | None = None,
        *,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        is_first: bool = False,
        grad_factor: torch.Tensor | None = None,
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> None:
        """See `ds_core.ops.sgd_`."""
        self._sgd(
            param.device,
            **_tensors(param, grad, copy_out, grad_factor, rounding_seed, rounding_offset),
            state_dtype=code(momentum_buffer),
            momentum_buffer=address(momentum_buffer),
            nesterov=nesterov,
            is_first=is_first,
            **sgd_scalars(lr, momentum, dampening, weight_decay)._asdict(),
        )

    def sum_of_squares(self, x: torch.Tensor) -> torch.Tensor:
        """See `ds_core.ops.sum_of_squares`."""
        out = torch.empty((), dtype=torch.float64, device=x.device)
        self._sum_of_squares(x.device, dtype=code(x), numel=x.numel(), x=address(x), out=address(out))
        return out


def _tensors(
    param: torch.Tensor,
    grad: torch.Tensor,
    copy_out: torch.Tensor | None,
    grad_factor: torch.Tensor | None,
    rounding_seed: int,
    rounding_offset: int,
) -> dict[str, int]:
    """The fields that the argument structs of all optimizers have."""
    return {
        "param_dtype": code(param),
        "grad_dtype": code(grad),
        "copy_dtype": code(copy_out),
        "numel": param.numel(),
        "param": address(param),
        "grad": address(grad),
        "copy_out": address(copy_out),
        "grad_factor": address(grad_factor),
        "rounding_seed": rounding_seed,
        "rounding_offset": rounding_offset,
    }
