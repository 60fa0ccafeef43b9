"""Normalizations of rows."""

from __future__ import annotations

import torch

from ds_accel_cpu.ops._base import Kernels, address, code
from ds_core.ops.native import KernelLibrary

__all__ = ["NormOps"]


class NormOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary) -> None:
        super().__init__(library)
        self._rms_norm_forward = self.kernel("rms_norm_forward")
        self._rms_norm_backward = self.kernel("rms_norm_backward")
        self._layer_norm_forward = self.kernel("layer_norm_forward")
        self._layer_norm_backward = self.kernel("layer_norm_backward")

    def rms_norm_forward(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.rms_norm_forward`."""
        x, weight = x.contiguous(), weight.contiguous()
        y, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        self._rms_norm_forward(
            dtype=code(x),
            weight_dtype=code(weight),
            eps=eps,
            rows=rstd.numel(),
            columns=x.shape[-1],
            x=address(x),
            weight=address(weight),
            y=address(y),
            rstd=address(rstd),
        )
        return y, rstd

    def rms_norm_backward(
        self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.rms_norm_backward`."""
        dy, x, weight, rstd = dy.contiguous(), x.contiguous(), weight.contiguous(), rstd.contiguous()
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        self._rms_norm_backward(
            dtype=code(x),
            weight_dtype=code(weight),
            rows=rstd.numel(),
            columns=x.shape[-1],
            dy=address(dy),
            x=address(x),
            weight=address(weight),
            rstd=address(rstd),
            dx=address(dx),
            dweight=address(dweight),
        )
        return dx, dweight

    def layer_norm_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.layer_norm_forward`."""
        x, weight = x.contiguous(), weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        y, mean = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        rstd = torch.empty_like(mean)
        self._layer_norm_forward(
            dtype=code(x),
            weight_dtype=code(weight),
            eps=eps,
            rows=mean.numel(),
            columns=x.shape[-1],
            x=address(x),
            weight=address(weight),
            bias=address(bias),
            y=address(y),
            mean=address(mean),
            rstd=address(rstd),
        )
        return y, mean, rstd

    def layer_norm_backward(
        self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.layer_norm_backward`."""
        dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
        mean, rstd = mean.contiguous(), rstd.contiguous()
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        self._layer_norm_backward(
            dtype=code(x),
            weight_dtype=code(weight),
            rows=mean.numel(),
            columns=x.shape[-1],
            dy=address(dy),
            x=address(x),
            weight=address(weight),
            mean=address(mean),
            rstd=address(rstd),
            dx=address(dx),
            dweight=address(dweight),
            dbias=address(dbias),
        )
        return dx, dweight, dbias
