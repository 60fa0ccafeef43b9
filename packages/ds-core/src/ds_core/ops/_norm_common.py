"""What the two normalizations share: checks of their arguments, and conformance cases."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ds_core.errors import OpError
from ds_core.ops.case import Exactness, Fill, Layout, TensorSpec
from ds_core.ops.checks import expect_device, expect_dtype, expect_shape, name_of

__all__ = ["BACKWARD_EXACTNESS", "FORWARD_EXACTNESS", "ROW_SPECS", "check_gradient", "check_rows", "check_vector"]

FORWARD_EXACTNESS = Exactness(ulps=1, relative=2e-6)
BACKWARD_EXACTNESS = Exactness(ulps=1, relative=2e-5)
"""Sums over rows and columns run in another order than torch's."""

ROW_SPECS: Sequence[tuple[str, TensorSpec, str]] = (
    *(
        (f"{dtype}_weight_{weight}", TensorSpec((5, 100), dtype), weight)
        for dtype in ("float32", "bfloat16", "float16")
        for weight in ("float32", "bfloat16", "float16")
    ),
    ("no_rows", TensorSpec((0, 64)), "float32"),
    ("one_column", TensorSpec((33, 1)), "float32"),
    ("one_dimension", TensorSpec((257,)), "float32"),
    ("four_dimensions", TensorSpec((2, 3, 5, 31)), "float32"),
    ("wide_row", TensorSpec((3, 5003), "bfloat16"), "float32"),
    ("many_rows", TensorSpec((3001, 40)), "float32"),
    ("large_values", TensorSpec((7, 129), "float32", Fill.NORMAL, 1e4), "float32"),
    ("transposed", TensorSpec((37, 64), "float32", layout=Layout.TRANSPOSED), "float32"),
    ("strided", TensorSpec((9, 48), "bfloat16", layout=Layout.STRIDED), "bfloat16"),
    ("unaligned", TensorSpec((9, 67), "bfloat16", layout=Layout.OFFSET), "float32"),
)
"""(name, x, dtype of the weight)."""


def check_rows(op: str, x: torch.Tensor, weight: torch.Tensor) -> None:
    """`x` has rows, and `weight` is a vector as long as they are."""
    if x.dim() < 1 or x.shape[-1] < 1:
        raise OpError(
            f"{op}: x must have at least one dimension and a last one that is not empty, got {tuple(x.shape)}."
        )
    expect_dtype(op, "x", x)
    check_vector(op, "weight", weight, x)


def check_vector(op: str, name: str, vector: torch.Tensor, x: torch.Tensor) -> None:
    """A parameter of the op: one value a column."""
    expect_dtype(op, name, vector)
    expect_shape(op, name, vector, x.shape[-1:], "the last dimension of x")
    expect_device(op, name, vector, "x", x.device)


def check_gradient(op: str, dy: torch.Tensor, x: torch.Tensor, **statistics: torch.Tensor) -> None:
    """`dy` is like `x`; each of the statistics is float32 with one value a row."""
    expect_shape(op, "dy", dy, x.shape, "the shape of x")
    expect_device(op, "dy", dy, "x", x.device)
    if dy.dtype != x.dtype:
        raise OpError(f"{op}: dy must be {name_of(x.dtype)} like x, got {name_of(dy.dtype)}.")
    for name, value in statistics.items():
        expect_dtype(op, name, value, (torch.float32,))
        expect_shape(op, name, value, x.shape[:-1], "one value a row of x")
        expect_device(op, name, value, "x", x.device)
