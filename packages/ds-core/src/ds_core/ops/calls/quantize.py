"""Quantization by groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ds_core.ops._formats import FORMATS, packed_shape
from ds_core.ops._quantize import SCALINGS
from ds_core.ops.calls.kernels import Kernels, Launcher, address, code
from ds_core.ops.native import KernelLibrary

__all__ = ["QuantizeOps"]


class QuantizeOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._quantize = self.kernel("quantize")
        self._dequantize = self.kernel("dequantize")

    def quantize(
        self,
        x: torch.Tensor,
        format: str,
        group_size: int,
        scaling: str = "symmetric",
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.quantize`."""
        x, kind = x.contiguous(), FORMATS[format]
        groups = (x.numel() + group_size - 1) // group_size
        q = torch.empty(packed_shape(kind, x.shape), dtype=kind.dtype, device=x.device)
        scales = torch.empty(
            (groups,), dtype=torch.uint8 if scaling == "power_of_two" else torch.float32, device=x.device
        )
        zeros = torch.empty((groups if scaling == "asymmetric" else 0,), dtype=torch.int8, device=x.device)
        self._quantize(
            x.device,
            dtype=code(x),
            format=kind.number,
            scaling=SCALINGS[scaling],
            numel=x.numel(),
            group_size=group_size,
            rounding_seed=rounding_seed,
            rounding_offset=rounding_offset,
            x=address(x),
            q=address(q),
            scales=address(scales),
            zeros=address(zeros),
        )
        return q, scales, zeros

    def dequantize(
        self,
        q: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        format: str,
        group_size: int,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """See `ds_core.ops.dequantize`."""
        q, scales = q.contiguous(), scales.contiguous()
        zeros = None if zeros is None else zeros.contiguous()
        scaling = "asymmetric" if zeros is not None else "power_of_two" if scales.dtype == torch.uint8 else "symmetric"
        x = q.new_empty(tuple(shape), dtype=dtype)
        self._dequantize(
            q.device,
            dtype=code(dtype),
            format=FORMATS[format].number,
            scaling=SCALINGS[scaling],
            numel=x.numel(),
            group_size=group_size,
            q=address(q),
            scales=address(scales),
            zeros=address(zeros),
            x=address(x),
        )
        return x
