"""Quantization by groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ds_core.ops._formats import FORMATS, packed_shape
from ds_core.ops._quantize import SCALINGS, groups_of
from ds_core.ops.calls.kernels import Kernels, Launcher, address, code
from ds_core.ops.native import KernelLibrary

__all__ = ["QuantizeOps"]


class QuantizeOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._quantize = self.kernel("quantize")
        self._dequantize = self.kernel("dequantize")
        self._quantized_reduce = self.kernel("quantized_reduce")
        self._quantized_reduce_quantize = self.kernel("quantized_reduce_quantize")
        self._swizzle_quantize = self.kernel("swizzle_quantize")

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
        scales, zeros = _scales_for((groups,), scaling, x.device)
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
        x = q.new_empty(tuple(shape), dtype=dtype)
        self._dequantize(
            q.device,
            dtype=code(dtype),
            format=FORMATS[format].number,
            scaling=_scaling_of(scales, zeros),
            numel=x.numel(),
            group_size=group_size,
            q=address(q),
            scales=address(scales),
            zeros=address(zeros),
            x=address(x),
        )
        return x

    def quantized_reduce(
        self,
        q: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        format: str,
        group_size: int,
        numel: int,
        average: bool,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """See `ds_core.ops.quantized_reduce`."""
        q, scales = q.contiguous(), scales.contiguous()
        zeros = None if zeros is None else zeros.contiguous()
        y = q.new_empty((numel,), dtype=dtype)
        self._quantized_reduce(
            q.device,
            dtype=code(dtype),
            format=FORMATS[format].number,
            scaling=_scaling_of(scales, zeros),
            average=int(average),
            ranks=q.shape[0],
            numel=numel,
            group_size=group_size,
            q=address(q),
            scales=address(scales),
            zeros=address(zeros),
            y=address(y),
        )
        return y

    def quantized_reduce_quantize(
        self,
        q: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        format: str,
        group_size: int,
        numel: int,
        average: bool,
        out_format: str,
        out_group_size: int,
        out_scaling: str = "symmetric",
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.quantized_reduce_quantize`."""
        q, scales, kind = q.contiguous(), scales.contiguous(), FORMATS[out_format]
        zeros = None if zeros is None else zeros.contiguous()
        out_q = q.new_empty(packed_shape(kind, (numel,)), dtype=kind.dtype)
        out_scales, out_zeros = _scales_for((groups_of(numel, out_group_size),), out_scaling, q.device)
        self._quantized_reduce_quantize(
            q.device,
            format=FORMATS[format].number,
            scaling=_scaling_of(scales, zeros),
            average=int(average),
            out_format=kind.number,
            out_scaling=SCALINGS[out_scaling],
            ranks=q.shape[0],
            numel=numel,
            group_size=group_size,
            out_group_size=out_group_size,
            rounding_seed=rounding_seed,
            rounding_offset=rounding_offset,
            q=address(q),
            scales=address(scales),
            zeros=address(zeros),
            out_q=address(out_q),
            out_scales=address(out_scales),
            out_zeros=address(out_zeros),
        )
        return out_q, out_scales, out_zeros

    def swizzle_quantize(
        self,
        x: torch.Tensor,
        format: str,
        group_size: int,
        nodes: int,
        ranks_per_node: int,
        scaling: str = "symmetric",
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.swizzle_quantize`."""
        x, kind, ranks = x.contiguous(), FORMATS[format], nodes * ranks_per_node
        chunk = x.numel() // ranks
        q = torch.empty((ranks, *packed_shape(kind, (chunk,))), dtype=kind.dtype, device=x.device)
        scales, zeros = _scales_for((ranks, groups_of(chunk, group_size)), scaling, x.device)
        self._swizzle_quantize(
            x.device,
            dtype=code(x),
            format=kind.number,
            scaling=SCALINGS[scaling],
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            chunk=chunk,
            group_size=group_size,
            rounding_seed=rounding_seed,
            rounding_offset=rounding_offset,
            x=address(x),
            q=address(q),
            scales=address(scales),
            zeros=address(zeros),
        )
        return q, scales, zeros


def _scaling_of(scales: torch.Tensor, zeros: torch.Tensor | None) -> int:
    name = "asymmetric" if zeros is not None else "power_of_two" if scales.dtype == torch.uint8 else "symmetric"
    return SCALINGS[name]


def _scales_for(shape: tuple[int, ...], scaling: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for scales, and for zero points if there are any."""
    dtype = torch.uint8 if scaling == "power_of_two" else torch.float32
    last = shape[-1] if scaling == "asymmetric" else 0
    zeros = torch.empty((*shape[:-1], last), dtype=torch.int8, device=device)
    return torch.empty(shape, dtype=dtype, device=device), zeros
