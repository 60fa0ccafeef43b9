"""Quantization by groups."""

from __future__ import annotations

import torch

from ds_accel_cpu.ops._base import Kernels, address, code
from ds_core.ops.native import KernelLibrary

__all__ = ["QuantizeOps"]


class QuantizeOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary) -> None:
        super().__init__(library)
        self._quantize_int8 = self.kernel("quantize_int8")
        self._dequantize_int8 = self.kernel("dequantize_int8")

    def quantize_int8(self, x: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.quantize_int8`."""
        x = x.contiguous()
        q = torch.empty(x.shape, dtype=torch.int8)
        scales = torch.empty(((x.numel() + group_size - 1) // group_size,), dtype=torch.float32)
        self._quantize_int8(
            dtype=code(x),
            numel=x.numel(),
            group_size=group_size,
            x=address(x),
            q=address(q),
            scales=address(scales),
        )
        return q, scales

    def dequantize_int8(
        self, q: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `ds_core.ops.dequantize_int8`."""
        q, scales = q.contiguous(), scales.contiguous()
        x = torch.empty(q.shape, dtype=dtype)
        self._dequantize_int8(
            dtype=code(dtype),
            numel=q.numel(),
            group_size=group_size,
            q=address(q),
            scales=address(scales),
            x=address(x),
        )
        return x
