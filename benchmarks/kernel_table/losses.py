"""Cross-entropy of logits, and of a linear layer by tiles."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_points import KernelPoint

from ds_core import ops

ROWS, CLASSES, QUICK_ROWS, DIM = 512, 32_000, 4, 512
EXP = 24

nn = torch.nn.functional


def points(quick: bool) -> Iterator[KernelPoint]:
    """A vocabulary of 32,000."""
    rows = QUICK_ROWS if quick else ROWS
    target = torch.randint(0, CLASSES, (rows,), generator=torch.Generator().manual_seed(0))
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield from _logits(name, dtype, target)
        yield from _linear(name, dtype, target)


def _logits(name: str, dtype: torch.dtype, target: torch.Tensor) -> Iterator[KernelPoint]:
    logits = torch.randn(len(target), CLASSES, generator=torch.Generator().manual_seed(0)).to(dtype)
    n, size = logits.numel(), logits.element_size()
    yield KernelPoint(
        f"cross-entropy, {name}",
        size * n,
        (EXP + 4) * n,  # largest (2), -, +
        lambda: ops.cross_entropy(logits, target),
        lambda: nn.cross_entropy(logits, target),
        "torch cross_entropy",
    )
    leaf = logits.clone().requires_grad_()
    loss = nn.cross_entropy(leaf, target)
    losses, lse = torch.ops.ds.cross_entropy_forward(logits, target, -100, 0.0, 0.0)
    dlosses = torch.full_like(losses, 1.0 / len(target))
    yield KernelPoint(
        f"cross-entropy backward, {name}",
        2 * size * n,
        (EXP + 3) * n,
        lambda: torch.ops.ds.cross_entropy_backward(dlosses, logits, target, lse, -100, 0.0, 0.0),
        lambda: torch.autograd.grad(loss, leaf, retain_graph=True),
        "torch autograd",
    )


def _linear(name: str, dtype: torch.dtype, target: torch.Tensor) -> Iterator[KernelPoint]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(target), DIM, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(CLASSES, DIM, generator=generator) * 0.02).to(dtype).requires_grad_()
    leaves = [hidden, weight]
    yield KernelPoint(
        f"linear and cross-entropy with gradients, {name}",
        2 * hidden.element_size() * (hidden.numel() + weight.numel()),
        6 * len(target) * CLASSES * DIM,
        lambda: torch.autograd.grad(ops.linear_cross_entropy(hidden, weight, target, tile_tokens=128), leaves),
        lambda: torch.autograd.grad(nn.cross_entropy(nn.linear(hidden, weight), target), leaves),
        "torch linear, cross_entropy",
        "fp32" if dtype == torch.float32 else "bf16",
    )
