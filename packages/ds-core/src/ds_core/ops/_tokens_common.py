"""What the ops that move rows by index share: checks of their arguments, and conformance cases."""

from __future__ import annotations

import torch

from ds_core.errors import OpError
from ds_core.ops.case import Layout
from ds_core.ops.checks import expect_device, expect_dtype, expect_index, expect_shape

__all__ = ["SHAPES", "check_rows", "check_weights", "expanded", "flat_index"]


def check_rows(op: str, name: str, x: torch.Tensor, index: torch.Tensor) -> None:
    """`x` is [..., rows, columns...] with the leading dimensions of `index`, which is [..., rows named]."""
    expect_index(op, "index", index, name, x.device)
    if index.dim() < 1 or x.dim() < index.dim() or x.shape[: index.dim() - 1] != index.shape[:-1]:
        raise OpError(
            f"{op}: {name} must be [..., rows, columns...] with the leading dimensions of index, "
            f"{tuple(index.shape[:-1])}, got {tuple(x.shape)} for index of shape {tuple(index.shape)}."
        )


def check_weights(op: str, weights: torch.Tensor, index: torch.Tensor) -> None:
    """A float for each index."""
    expect_dtype(op, "weights", weights)
    expect_shape(op, "weights", weights, index.shape, "one for each index")
    expect_device(op, "weights", weights, "index", index.device)


def flat_index(index: torch.Tensor, rows: int) -> torch.Tensor:
    """Row numbers over all leading dimensions at once, [numel of index]."""
    runs = index.reshape(-1, index.shape[-1]) if index.numel() else index.new_empty((0, 1))
    return (runs + rows * torch.arange(runs.shape[0], device=index.device).unsqueeze(-1)).reshape(-1)


def expanded(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`values` with dimensions of size 1 behind, up to those of `like`."""
    return values.reshape(*values.shape, *(1 for _ in range(like.dim() - values.dim())))


SHAPES: tuple[tuple[str, tuple[int, ...], int, int, tuple[int, ...], str, Layout], ...] = (
    *((dtype, (), 12, 30, (65,), dtype, Layout.CONTIGUOUS) for dtype in ("float32", "bfloat16", "float16")),
    ("batched", (3,), 20, 7, (33,), "bfloat16", Layout.CONTIGUOUS),
    ("two_batches", (2, 3), 9, 4, (5,), "float32", Layout.CONTIGUOUS),
    ("no_columns", (), 11, 5, (), "float32", Layout.CONTIGUOUS),
    ("more_columns", (2,), 6, 5, (3, 7), "float16", Layout.CONTIGUOUS),
    ("empty_columns", (2,), 6, 5, (0,), "float32", Layout.CONTIGUOUS),
    ("none_taken", (2,), 6, 0, (8,), "float32", Layout.CONTIGUOUS),
    ("wide", (), 5, 9, (3001,), "bfloat16", Layout.CONTIGUOUS),
    ("many", (2,), 1200, 900, (16,), "float32", Layout.CONTIGUOUS),
    ("transposed", (), 12, 8, (20,), "float32", Layout.TRANSPOSED),
    ("strided", (2,), 12, 8, (24,), "bfloat16", Layout.STRIDED),
    ("unaligned", (), 12, 8, (21,), "float16", Layout.OFFSET),
)
"""(name, leading dimensions, rows, rows named, columns, dtype, layout)."""
