"""Normalizations of rows."""

from __future__ import annotations

import torch

from ds_core.ops.calls.kernels import Kernels, Launcher, address, code
from ds_core.ops.native import KernelLibrary

__all__ = ["NormOps"]


class NormOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._rms_norm_forward = self.kernel("rms_norm_forward")
        self._rms_norm_backward = self.kernel("rms_norm_backward")
        self._layer_norm_forward = self.kernel("layer_norm_forward")
        self._layer_norm_backward = self.kernel("layer_norm_backward")

    def rms_norm_forward(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.rms_norm_forward`."""
        y, _, rstd = self._rms_forward(x, None, weight, eps)
        return y, rstd

    def add_rms_norm_forward(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(y, total, rstd), see `ds_core.ops.add_rms_norm`."""
        return self._rms_forward(x, residual, weight, eps)

    def _rms_forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, residual, weight = x.contiguous(), _dense(residual), weight.contiguous()
        y, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        total = x if residual is None else torch.empty_like(x)
        self._rms_norm_forward(
            x.device,
            dtype=code(x),
            weight_dtype=code(weight),
            eps=eps,
            rows=rstd.numel(),
            columns=x.shape[-1],
            x=address(x),
            weight=address(weight),
            y=address(y),
            rstd=address(rstd),
            residual=address(residual),
            total=0 if residual is None else address(total),
        )
        return y, total, rstd

    def rms_norm_backward(
        self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.rms_norm_backward`."""
        return self.add_rms_norm_backward(dy, None, x, weight, rstd)

    def add_rms_norm_backward(
        self,
        dy: torch.Tensor,
        dtotal: torch.Tensor | None,
        total: torch.Tensor,
        weight: torch.Tensor,
        rstd: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(gradient of x and of residual, dweight)."""
        dy, dtotal, total = dy.contiguous(), _dense(dtotal), total.contiguous()
        weight, rstd = weight.contiguous(), rstd.contiguous()
        dx, dweight = torch.empty_like(total), torch.empty_like(weight)
        self._rms_norm_backward(
            total.device,
            dtype=code(total),
            weight_dtype=code(weight),
            rows=rstd.numel(),
            columns=total.shape[-1],
            dy=address(dy),
            x=address(total),
            weight=address(weight),
            rstd=address(rstd),
            dx=address(dx),
            dweight=address(dweight),
            dtotal=address(dtotal),
        )
        return dx, dweight

    def layer_norm_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.layer_norm_forward`."""
        y, _, mean, rstd = self._layer_forward(x, None, weight, bias, eps)
        return y, mean, rstd

    def add_layer_norm_forward(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(y, total, mean, rstd), see `ds_core.ops.add_layer_norm`."""
        return self._layer_forward(x, residual, weight, bias, eps)

    def _layer_forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        x, residual, weight, bias = x.contiguous(), _dense(residual), weight.contiguous(), _dense(bias)
        y, mean = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        rstd = torch.empty_like(mean)
        total = x if residual is None else torch.empty_like(x)
        self._layer_norm_forward(
            x.device,
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
            residual=address(residual),
            total=0 if residual is None else address(total),
        )
        return y, total, mean, rstd

    def layer_norm_backward(
        self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.layer_norm_backward`."""
        return self.add_layer_norm_backward(dy, None, x, weight, mean, rstd)

    def add_layer_norm_backward(
        self,
        dy: torch.Tensor,
        dtotal: torch.Tensor | None,
        total: torch.Tensor,
        weight: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(gradient of x and of residual, dweight, dbias)."""
        dy, dtotal, total, weight = dy.contiguous(), _dense(dtotal), total.contiguous(), weight.contiguous()
        mean, rstd = mean.contiguous(), rstd.contiguous()
        dx, dweight, dbias = torch.empty_like(total), torch.empty_like(weight), torch.empty_like(weight)
        self._layer_norm_backward(
            total.device,
            dtype=code(total),
            weight_dtype=code(weight),
            rows=mean.numel(),
            columns=total.shape[-1],
            dy=address(dy),
            x=address(total),
            weight=address(weight),
            mean=address(mean),
            rstd=address(rstd),
            dx=address(dx),
            dweight=address(dweight),
            dbias=address(dbias),
            dtotal=address(dtotal),
        )
        return dx, dweight, dbias


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()
