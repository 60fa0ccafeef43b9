"""Residual norms, rotary embeddings, gated activations and softmax, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from kernel_points import KernelPoint

from ds_core import ops

ROWS, COLUMNS, QUICK_ROWS = 3 << 10, 2048, 8
HEADS, HEAD_DIM = 16, 128
EPS = 1e-6
# Products, sums and comparisons of csrc/kernels/elementary.h for one element.
EXP, TANH, ERF = 24, 40, 55
PER_GATE = {"silu": EXP + 3, "gelu": ERF + 5, "gelu_tanh": TANH + 10}
PER_SLOPE = {"silu": EXP + 10, "gelu": ERF + EXP + 10, "gelu_tanh": TANH + 20}
DTYPES = (("fp32", torch.float32), ("bf16", torch.bfloat16))

nn = torch.nn.functional
TORCH_GATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": nn.silu,
    "gelu": nn.gelu,
    "gelu_tanh": lambda x: nn.gelu(x, approximate="tanh"),
}


def points(quick: bool) -> Iterator[KernelPoint]:
    """Rows of 2048 elements, far larger than the caches together."""
    rows = QUICK_ROWS if quick else ROWS
    for name, dtype in DTYPES:
        yield from _residual_norm(name, dtype, rows)
        yield from _rotary(name, dtype, rows)
        for kind in PER_GATE:
            yield from _gated(kind, name, dtype, rows)
        yield from _softmax(name, dtype, rows)


def _filled(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _residual_norm(name: str, dtype: torch.dtype, rows: int) -> Iterator[KernelPoint]:
    x, residual, w = _filled(dtype, rows, COLUMNS), _filled(dtype, rows, COLUMNS), _filled(dtype, COLUMNS)
    yield KernelPoint(
        f"rms norm with residual, {name}",
        4 * x.element_size() * x.numel(),
        5 * x.numel(),  # +; x * x, +; * rstd, * w
        lambda: ops.add_rms_norm(x, residual, w, EPS),
        lambda: nn.rms_norm(x + residual, [COLUMNS], w, EPS),
        "torch add, rms_norm",
    )


def _rotary(name: str, dtype: torch.dtype, rows: int) -> Iterator[KernelPoint]:
    x = _filled(dtype, 1, rows, HEADS, HEAD_DIM)
    cos, sin = ops.rotary_tables(HEAD_DIM, rows)
    positions = torch.arange(rows)
    wide_cos, wide_sin = (torch.cat((t, t), -1)[positions].unsqueeze(1).to(dtype) for t in (cos, sin))

    def by_torch() -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * wide_cos + torch.cat((-second, first), -1) * wide_sin

    moved = 2 * x.element_size() * x.numel() + 8 * cos.numel()
    yield KernelPoint(
        f"rotary, {name}",
        moved,
        4 * x.numel(),  # sign * sin, two products, one sum
        lambda: ops.rotary(x, cos, sin, positions),
        by_torch,
        "torch, by halves",
    )


def _gated(kind: str, name: str, dtype: torch.dtype, rows: int) -> Iterator[KernelPoint]:
    gate, up, dy = (_filled(dtype, rows, COLUMNS) for _ in range(3))
    n, size = gate.numel(), gate.element_size()
    activate = TORCH_GATES[kind]
    yield KernelPoint(
        f"{kind} gate, {name}",
        3 * size * n,
        (PER_GATE[kind] + 1) * n,
        lambda: ops.gated_activation(gate, up, kind),
        lambda: activate(gate) * up,
        f"torch {kind}, *",
    )
    leaves = [t.clone().requires_grad_() for t in (gate, up)]
    y = activate(leaves[0]) * leaves[1]
    yield KernelPoint(
        f"{kind} gate backward, {name}",
        5 * size * n,
        (PER_SLOPE[kind] + 3) * n,
        lambda: torch.ops.ds.gated_activation_backward(dy, gate, up, kind),
        lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True),
        "torch autograd",
    )


def _softmax(name: str, dtype: torch.dtype, rows: int) -> Iterator[KernelPoint]:
    x, dy = _filled(dtype, rows, COLUMNS), _filled(dtype, rows, COLUMNS)
    n, size = x.numel(), x.element_size()
    yield KernelPoint(
        f"softmax, {name}",
        2 * size * n,
        (EXP + 6) * n,  # * scale, largest (2), -, +, * inverse
        lambda: ops.softmax(x, scale=0.125),
        lambda: (x * 0.125).softmax(-1),
        "torch *, softmax",
    )
    y = x.softmax(-1)
    yield KernelPoint(
        f"softmax backward, {name}",
        3 * size * n,
        5 * n,
        lambda: ops.softmax_backward(dy, y),
        lambda: torch.ops.aten._softmax_backward_data(dy, y, -1, dtype),
        "torch softmax backward",
    )
