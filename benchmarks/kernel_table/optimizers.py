"""One step of each optimizer, and the norm that clipping needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from kernel_points import KernelPoint

from ds_core import ops

NUMEL, QUICK_NUMEL = 1 << 24, 1 << 14
ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "step": 7}


def points(quick: bool) -> Iterator[KernelPoint]:
    """Float32 states and parameters, far larger than the caches."""
    n = QUICK_NUMEL if quick else NUMEL
    yield from _adam(n)
    yield from _others(n)
    yield from _norms(n)


def _adam(n: int) -> Iterator[KernelPoint]:
    p, g, m, v = _vectors(n, 4)
    v.abs_()
    peer = _optimizer(torch.optim.AdamW, p, g, lr=1e-3, weight_decay=0.01, fused=True)
    # g * factor; p * decay; g - m, fma; w * g, v * b, fma; sqrt, /, +; * , /, +: 14 with two for an fma
    yield KernelPoint("adam", 28 * n, 14 * n, lambda: ops.adam_(p, g, m, v, **ADAM), peer, "torch fused AdamW")
    half, copy = g.bfloat16(), torch.empty(n, dtype=torch.bfloat16)
    factor, wide, q = torch.tensor(0.5), g.clone(), p.clone()
    step = _optimizer(torch.optim.AdamW, q, wide, lr=1e-3, weight_decay=0.01, fused=True)
    yield KernelPoint(
        "adam, bf16 grads and copy",
        28 * n,
        14 * n,
        lambda: ops.adam_(p, half, m, v, copy, grad_factor=factor, **ADAM),
        lambda: (wide.copy_(half).mul_(factor), step(), copy.copy_(q)),
        "torch: widen, scale, fused AdamW, round",
    )
    low = [t.bfloat16() for t in (p.detach(), g, m, v)]
    yield KernelPoint(
        "adam, all bf16",
        14 * n,
        14 * n,
        lambda: ops.adam_(*low, **ADAM),
        _optimizer(torch.optim.AdamW, low[0].clone(), low[1], lr=1e-3, weight_decay=0.01, fused=True),
        "torch fused AdamW",
    )


def _others(n: int) -> Iterator[KernelPoint]:
    p, g, m = _vectors(n, 3)
    m.abs_()
    # g * factor; g * g, +; sqrt, +, *, /, +
    yield KernelPoint(
        "adagrad",
        20 * n,
        8 * n,
        lambda: ops.adagrad_(p, g, m, lr=1e-3, eps=1e-8, weight_decay=0.0, step=7),
        _optimizer(torch.optim.Adagrad, p, g, lr=1e-3, fused=True),
        "torch fused Adagrad",
    )
    # g * factor; m * b, fma; sign, p * decay, + ; m * b, fma
    yield KernelPoint(
        "lion",
        20 * n,
        11 * n,
        lambda: ops.lion_(p, g, m, lr=1e-3, beta1=0.9, beta2=0.99, weight_decay=0.1),
        lambda: _lion(p, g, m),
        "torch ops",
    )
    yield KernelPoint(
        "sgd, momentum",
        20 * n,
        6 * n,
        lambda: ops.sgd_(p, g, m, lr=1e-3, momentum=0.9, weight_decay=0.0),
        _optimizer(torch.optim.SGD, p, g, lr=1e-3, momentum=0.9, fused=True),
        "torch fused SGD",
    )


def _norms(n: int) -> Iterator[KernelPoint]:
    (x,) = _vectors(n, 1)
    for name, t in (("fp32", x), ("bf16", x.bfloat16())):
        yield KernelPoint(
            f"sum of squares, {name}",
            t.element_size() * n,
            2 * n,
            lambda t=t: ops.sum_of_squares(t),  # type: ignore[misc]
            lambda t=t: torch.linalg.vector_norm(t),  # type: ignore[misc]
            "torch vector_norm",
        )


def _vectors(n: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator) for _ in range(count)]


def _lion(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor) -> None:
    step = (m * 0.9).add_(g, alpha=0.1).sign_()
    p.mul_(1 - 1e-4).add_(step, alpha=-1e-3)
    m.mul_(0.99).add_(g, alpha=0.01)


def _optimizer(kind: Any, p: torch.Tensor, g: torch.Tensor, **settings: Any) -> Callable[[], object]:
    parameter = torch.nn.Parameter(p, requires_grad=True)
    parameter.grad = g
    optimizer: torch.optim.Optimizer = kind([parameter], **settings)
    return optimizer.step
