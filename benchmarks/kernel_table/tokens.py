"""Rows moved by index, as for a mixture of experts and for random-LTD."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_points import KernelPoint

from ds_core import ops

TOKENS, DIM, CHOSEN, QUICK_TOKENS = 1 << 13, 1024, 2, 16


def points(quick: bool) -> Iterator[KernelPoint]:
    """Rows of 1024 elements in a random order, two slots a token."""
    tokens = QUICK_TOKENS if quick else TOKENS
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield from _experts(name, dtype, tokens)
        yield from _dropped(name, dtype, tokens)


def _experts(name: str, dtype: torch.dtype, tokens: int) -> Iterator[KernelPoint]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, DIM, generator=generator).to(dtype)
    order = torch.randperm(tokens * CHOSEN, generator=generator)
    token, where = order // CHOSEN, order.argsort().view(tokens, CHOSEN)
    weights = torch.rand(tokens, CHOSEN, generator=generator)
    slots = ops.gather_rows(x, token)
    size = x.element_size()
    yield KernelPoint(
        f"gather rows, {name}",
        size * (x.numel() + slots.numel()),
        0,
        lambda: ops.gather_rows(x, token),
        lambda: x.index_select(0, token),
        "torch index_select",
    )
    yield KernelPoint(
        f"scatter rows, {name}",
        size * (x.numel() + slots.numel()),
        2 * slots.numel(),
        lambda: ops.scatter_rows(slots, token, tokens),
        lambda: torch.zeros_like(x).index_add_(0, token, slots),
        "torch index_add_",
    )
    yield KernelPoint(
        f"combine rows, {name}",
        size * (x.numel() + slots.numel()),
        2 * slots.numel(),
        lambda: ops.combine_rows(slots, where, weights),
        lambda: (slots[where] * weights.unsqueeze(-1).to(dtype)).sum(1),
        "torch index, *, sum",
    )
    dy = torch.randn(tokens, DIM, generator=generator).to(dtype)
    leaves = [slots.clone().requires_grad_(), weights.clone().requires_grad_()]
    y = (leaves[0][where] * leaves[1].unsqueeze(-1).to(dtype)).sum(1)
    yield KernelPoint(
        f"combine rows backward, {name}",
        size * (x.numel() + 2 * slots.numel()),
        4 * slots.numel(),
        lambda: torch.ops.ds.combine_rows_backward(dy, slots, where, weights),
        lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True),
        "torch autograd",
    )


def _dropped(name: str, dtype: torch.dtype, tokens: int) -> Iterator[KernelPoint]:
    generator = torch.Generator().manual_seed(0)
    batch, length = 4, tokens // 4
    base = torch.randn(batch, length, DIM, generator=generator).to(dtype)
    kept = torch.stack([torch.randperm(length, generator=generator)[: length // 2].sort().values for _ in range(batch)])
    part = ops.gather_rows(base, kept)
    wide = kept.unsqueeze(-1).expand(-1, -1, DIM)
    yield KernelPoint(
        f"replace rows, {name}",
        2 * base.element_size() * base.numel(),
        0,
        lambda: ops.replace_rows(base, part, kept),
        lambda: base.scatter(1, wide, part),
        "torch scatter",
    )
