"""Quantization by groups to integers and small floats, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from kernel_points import KernelPoint

from ds_core import ops
from ds_core.ops import Quantized

NUMEL, QUICK_NUMEL, GROUP = 1 << 24, 1 << 14, 128
MX_GROUP = 32
FLOAT8 = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
WAYS = (
    # format, scaling, group
    ("int8", "symmetric", GROUP),
    ("int8", "asymmetric", GROUP),
    ("int4", "symmetric", GROUP),
    ("int4", "asymmetric", GROUP),
    ("e4m3fn", "symmetric", GROUP),
    ("e5m2", "symmetric", GROUP),
    ("e3m2", "power_of_two", MX_GROUP),
    ("e2m3", "power_of_two", MX_GROUP),
    ("e2m1", "power_of_two", MX_GROUP),
)


def points(quick: bool) -> Iterator[KernelPoint]:
    """Groups of 128, and of 32 with scales that are powers of two."""
    n = QUICK_NUMEL if quick else NUMEL
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype)
        for format, scaling, group in WAYS:
            yield from _of(f"{format} {scaling}, {name}", x, format, scaling, group)
    yield from _stochastic(x)


def _of(name: str, x: torch.Tensor, format: str, scaling: str, group: int) -> Iterator[KernelPoint]:
    found = ops.quantize(x, format, group, scaling=scaling)
    moved = x.nbytes + sum(t.nbytes for t in found if t is not None)
    there, back = _peers(x, found, format, scaling, group)
    # the largest magnitude; /, round, two bounds
    yield KernelPoint(
        f"quantize {name}",
        moved,
        5 * x.numel(),
        lambda: ops.quantize(x, format, group, scaling=scaling),
        there,
        "torch ops",
    )
    yield KernelPoint(
        f"dequantize {name}",
        moved,
        x.numel() * (2 if scaling == "asymmetric" else 1),
        lambda: ops.dequantize(*found, format, group, x.shape, x.dtype),
        back,
        "torch ops",
    )


def _stochastic(x: torch.Tensor) -> Iterator[KernelPoint]:
    found = ops.quantize(x, "int4", GROUP, rounding_seed=1)
    moved = x.nbytes + found.q.nbytes + found.scales.nbytes
    # the largest magnitude; /, floor, -, compare, two bounds; integer hashing is not counted
    yield KernelPoint(
        "quantize int4 stochastic, bf16",
        moved,
        7 * x.numel(),
        lambda: ops.quantize(x, "int4", GROUP, rounding_seed=1),
    )


Call = Callable[[], object]


def _peers(x: torch.Tensor, found: Quantized, format: str, scaling: str, group: int) -> tuple[Call | None, Call | None]:
    """The same in torch operations, where torch has the format and needs no packing."""
    if scaling != "symmetric" or format not in ("int8", *FLOAT8):
        return None, None
    limit = 127.0 if format == "int8" else torch.finfo(FLOAT8[format]).max
    codes = found.q if format == "int8" else found.q.view(FLOAT8[format])

    def there() -> tuple[torch.Tensor, torch.Tensor]:
        rows = x.float().view(-1, group)
        scales = rows.abs().amax(dim=1).div_(limit)
        ratios = rows / scales[:, None]
        if format == "int8":
            ratios.round_()
        return ratios.clamp_(-limit, limit).to(codes.dtype), scales

    return there, lambda: (codes.view(-1, group).float() * found.scales[:, None]).to(x.dtype)
