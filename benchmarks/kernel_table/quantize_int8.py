"""Quantization to symmetric int8 by groups, and back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_points import KernelPoint

from ds_core import ops

NUMEL, QUICK_NUMEL, GROUP = 1 << 24, 1 << 14, 128


def points(quick: bool) -> Iterator[KernelPoint]:
    """Groups of 128."""
    n = QUICK_NUMEL if quick else NUMEL
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield from _of(name, dtype, n)


def _of(name: str, dtype: torch.dtype, n: int) -> Iterator[KernelPoint]:
    x = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype)
    moved = n * (x.element_size() + 1) + 4 * (n // GROUP)
    # the largest magnitude; /, round, two bounds
    yield KernelPoint(
        f"quantize int8, {name}", moved, 5 * n, lambda: ops.quantize_int8(x, GROUP), lambda: _quantize(x), "torch ops"
    )
    q, scales = ops.quantize_int8(x, GROUP)
    yield KernelPoint(
        f"dequantize int8, {name}",
        moved,
        n,
        lambda: ops.dequantize_int8(q, scales, GROUP, dtype),
        lambda: (q.view(-1, GROUP) * scales[:, None]).to(dtype),
        "torch ops",
    )


def _quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = x.float().view(-1, GROUP)
    scales = rows.abs().amax(dim=1).div_(127)
    return (rows / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales
