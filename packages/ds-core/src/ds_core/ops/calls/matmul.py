"""Linear layers with quantized weights."""

from __future__ import annotations

import torch

from ds_core.ops._formats import FORMATS
from ds_core.ops._packed_weight import INTEGER
from ds_core.ops.calls.kernels import CallableKernel, Kernels, Launcher, address, code
from ds_core.ops.native import KernelLibrary

__all__ = ["MatmulOps"]


class MatmulOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._linear_weight_only = self.kernel("linear_weight_only", "ds_linear_args")
        self._linear_w8a8 = self.kernel("linear_w8a8", "ds_linear_args")

    def linear_weight_only(
        self,
        x: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bias: torch.Tensor | None,
        bits: int,
        group_size: int,
        out_features: int,
        format: str = INTEGER,
    ) -> torch.Tensor:
        """See `ds_core.ops.linear_weight_only`."""
        kernel = self._linear_weight_only
        return _linear(kernel, x, codes, scales, zeros, bias, bits, group_size, out_features, format)

    def linear_w8a8(
        self,
        x: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bias: torch.Tensor | None,
        bits: int,
        group_size: int,
        out_features: int,
    ) -> torch.Tensor:
        """See `ds_core.ops.linear_w8a8`."""
        return _linear(self._linear_w8a8, x, codes, scales, zeros, bias, bits, group_size, out_features)


def _linear(
    kernel: CallableKernel,
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    format: str = INTEGER,
) -> torch.Tensor:
    x, codes, scales = x.contiguous(), codes.contiguous(), scales.contiguous()
    zeros = None if zeros is None else zeros.contiguous()
    bias = None if bias is None else bias.float().contiguous()
    y = x.new_empty((*x.shape[:-1], out_features))
    kernel(
        x.device,
        dtype=code(x),
        bits=bits,
        format=0 if format == INTEGER else FORMATS[format].number,
        rows=x.numel() // x.shape[-1],
        inputs=x.shape[-1],
        outputs=out_features,
        group_size=group_size,
        x=address(x),
        codes=address(codes),
        scales=address(scales),
        zeros=address(zeros),
        bias=address(bias),
        y=address(y),
    )
    return y
