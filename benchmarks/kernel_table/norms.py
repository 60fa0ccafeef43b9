"""Normalizations of rows, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_points import KernelPoint

from ds_core import ops

ROWS, COLUMNS, QUICK_ROWS = 1 << 13, 2048, 8
EPS = 1e-6


def points(quick: bool) -> Iterator[KernelPoint]:
    """Rows of 2048 elements, far larger than the caches together."""
    rows = QUICK_ROWS if quick else ROWS
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield from _of(name, dtype, rows)


def _of(name: str, dtype: torch.dtype, rows: int) -> Iterator[KernelPoint]:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(rows, COLUMNS, generator=generator).to(dtype) for _ in range(2))
    w, b = (torch.randn(COLUMNS, generator=generator).to(dtype) for _ in range(2))
    n, size = x.numel(), x.element_size()
    shape = [COLUMNS]
    nn = torch.nn.functional
    # x * x, +; * rstd, * w
    yield KernelPoint(
        f"rms norm, {name}",
        2 * size * n,
        4 * n,
        lambda: ops.rms_norm_forward(x, w, EPS),
        lambda: nn.rms_norm(x, shape, w, EPS),
        "torch rms_norm",
    )
    _, rstd = ops.rms_norm_forward(x, w, EPS)
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    y = nn.rms_norm(leaves[0], shape, leaves[1], EPS)
    # dy * w * (x * rstd), +; dy * (x * rstd), +; dy * w - x * rstd * projection, * rstd
    yield KernelPoint(
        f"rms norm backward, {name}",
        3 * size * n,
        11 * n,
        lambda: ops.rms_norm_backward(dy, x, w, rstd),
        lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True),
        "torch autograd",
    )
    # +; -, square, +; -, * rstd, * w, + b
    yield KernelPoint(
        f"layer norm, {name}",
        2 * size * n,
        8 * n,
        lambda: ops.layer_norm_forward(x, w, b, EPS),
        lambda: nn.layer_norm(x, shape, w, b, EPS),
        "torch layer_norm",
    )
    _, mean, rstd2 = ops.layer_norm_forward(x, w, b, EPS)
    leaves2 = [t.clone().requires_grad_() for t in (x, w, b)]
    z = nn.layer_norm(leaves2[0], shape, leaves2[1], leaves2[2], EPS)
    yield KernelPoint(
        f"layer norm backward, {name}",
        3 * size * n,
        16 * n,
        lambda: ops.layer_norm_backward(dy, x, w, mean, rstd2),
        lambda: torch.autograd.grad(z, leaves2, dy, retain_graph=True),
        "torch autograd",
    )
