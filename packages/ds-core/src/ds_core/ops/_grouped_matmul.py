"""grouped_matmul: runs of rows, each times the matrix of its group, as the experts of a mixture; there and back."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops.case import Exactness, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_device, expect_dtype, expect_index
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "grouped_matmul"]


def grouped_matmul(
    x: torch.Tensor, w: torch.Tensor, offsets: torch.Tensor, *, transposed: bool = False
) -> torch.Tensor:
    """``y[m] = x[m] @ w[g]`` for the rows m of each group g, from ``offsets[g]`` up to ``offsets[g + 1]``.

    For a mixture of experts: `x` holds the tokens sorted by expert and `offsets` is that of `expert_permutation`. A
    group may have no rows. Rows behind the last group belong to none and give zeros. Each group is one product of
    matrices, the same one as without the others, so numbers do not depend on what else is in the batch. Differentiable
    in `x` and `w`.

    Args:
        x: [rows, K], float32, bfloat16 or float16.
        w: [groups, K, N] in the dtype of `x`; [groups, N, K], as the weights of linear layers are, with `transposed`.
        offsets: [groups + 1] int64, from 0, never falling, at most `rows`.
        transposed: multiply with the transposes of the matrices.

    Returns:
        [rows, N], dense, in the dtype of `x`.

    Raises:
        OpError: a shape, dtype or offset does not fit.

    Source: T. Gale et al., "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", 2022, section 2 (experts
    of any load as one grouped product, with no token dropped and no row added).
    """
    y: torch.Tensor
    if is_plain(x) and not (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)):
        y = run(DEFINITIONS[0], x, w, offsets, transposed)
    else:
        y = torch.ops.ds.grouped_matmul(x, w, offsets, transposed)
    return y


def _check(x: torch.Tensor, w: torch.Tensor, offsets: torch.Tensor, transposed: bool) -> None:
    op = "grouped_matmul"
    expect_dtype(op, "x", x)
    layout = "[groups, N, K]" if transposed else "[groups, K, N]"
    if x.dim() != 2 or w.dim() != 3 or w.shape[2 if transposed else 1] != x.shape[1]:
        raise OpError(f"{op}: x must be [rows, K] and w {layout}, got {tuple(x.shape)} and {tuple(w.shape)}.")
    _expect_same(op, "w", w, x)
    _expect_offsets(op, offsets, w.shape[0], x)


def _check_weight(x: torch.Tensor, dy: torch.Tensor, offsets: torch.Tensor) -> None:
    op = "grouped_matmul_weight"
    expect_dtype(op, "x", x)
    if x.dim() != 2 or dy.dim() != 2 or x.shape[0] != dy.shape[0]:
        raise OpError(f"{op}: x must be [rows, K] and dy [rows, N], got {tuple(x.shape)} and {tuple(dy.shape)}.")
    _expect_same(op, "dy", dy, x)
    _expect_offsets(op, offsets, offsets.shape[0] - 1 if offsets.dim() == 1 else 0, x)


def _expect_same(op: str, name: str, tensor: torch.Tensor, x: torch.Tensor) -> None:
    expect_dtype(op, name, tensor, (x.dtype,))
    expect_device(op, name, tensor, "x", x.device)


def _expect_offsets(op: str, offsets: torch.Tensor, groups: int, x: torch.Tensor) -> None:
    expect_index(op, "offsets", offsets, "x", x.device)
    if offsets.dim() != 1 or offsets.shape[0] != groups + 1 or groups < 0:
        raise OpError(
            f"{op}: offsets must be [groups + 1] = [{groups + 1}], where each group begins and the end of the last, "
            f"got shape {tuple(offsets.shape)}."
        )


def _bounds(op: str, offsets: torch.Tensor, rows: int) -> list[int]:
    """The offsets as whole numbers, checked."""
    bounds: list[int] = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] > rows or any(bounds[i] > bounds[i + 1] for i in range(len(bounds) - 1)):
        raise OpError(f"{op}: offsets must begin with 0, never fall and end at {rows} (rows) or before, got {bounds}.")
    return bounds


def _reference(x: torch.Tensor, w: torch.Tensor, offsets: torch.Tensor, transposed: bool) -> torch.Tensor:
    bounds = _bounds("grouped_matmul", offsets, x.shape[0])
    y = x.new_empty((x.shape[0], w.shape[1 if transposed else 2]))
    for group, matrix in enumerate(w.unbind(0)):
        begin, end = bounds[group], bounds[group + 1]
        if begin < end:
            torch.mm(x[begin:end], matrix.t() if transposed else matrix, out=y[begin:end])
    y[bounds[-1] :].zero_()
    return y


def _reference_weight(x: torch.Tensor, dy: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    bounds = _bounds("grouped_matmul_weight", offsets, x.shape[0])
    dw = x.new_empty((len(bounds) - 1, x.shape[1], dy.shape[1]))
    for group, matrix in enumerate(dw.unbind(0)):
        begin, end = bounds[group], bounds[group + 1]
        if begin < end:
            torch.mm(x[begin:end].t(), dy[begin:end], out=matrix)
        else:
            matrix.zero_()
    return dw


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, w, offsets, transposed = inputs
    ctx.transposed = transposed
    ctx.save_for_backward(x, w, offsets)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    x, w, offsets = ctx.saved_tensors
    dx = dw = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.ds.grouped_matmul(dy, w, offsets, not ctx.transposed)
    if ctx.needs_input_grad[1]:
        pair = (dy, x) if ctx.transposed else (x, dy)
        dw = torch.ops.ds.grouped_matmul_weight(*pair, offsets)
    return dx, dw, None, None


_SHAPES: tuple[tuple[str, int, int, int, tuple[int, ...], str, Layout], ...] = (
    *((dtype, 37, 24, 40, (0, 5, 5, 20, 37), dtype, Layout.CONTIGUOUS) for dtype in ("float32", "bfloat16", "float16")),
    ("odd", 67, 33, 17, (0, 1, 34, 67), "float32", Layout.CONTIGUOUS),
    ("one_group", 40, 16, 8, (0, 40), "float32", Layout.CONTIGUOUS),
    ("rows_of_no_group", 20, 8, 12, (0, 3, 11), "float32", Layout.CONTIGUOUS),
    ("empty_groups", 12, 8, 8, (0, 0, 12, 12, 12), "bfloat16", Layout.CONTIGUOUS),
    ("no_rows", 0, 8, 12, (0, 0, 0), "float32", Layout.CONTIGUOUS),
    ("no_columns", 6, 8, 0, (0, 4, 6), "float32", Layout.CONTIGUOUS),
    ("nothing_to_add", 6, 0, 5, (0, 4, 6), "float32", Layout.CONTIGUOUS),
    ("transposed", 30, 12, 20, (0, 9, 30), "float32", Layout.TRANSPOSED),
    ("strided", 30, 12, 20, (0, 9, 30), "float32", Layout.STRIDED),
    ("unaligned", 30, 13, 21, (0, 9, 30), "float16", Layout.OFFSET),
)
"""(name, rows, K, N, offsets, dtype, layout)."""


def _cases() -> tuple[OpCase, ...]:
    return tuple(
        OpCase(
            f"{name}_{'linear' if transposed else 'plain'}",
            {
                "x": TensorSpec((rows, k), dtype, layout=layout),
                "w": TensorSpec((len(offsets) - 1, *((n, k) if transposed else (k, n))), dtype, layout=layout),
                "offsets": TensorSpec((len(offsets),), "int64", values=offsets),
            },
            {"transposed": transposed},
            exactness=Exactness(ulps=2, relative=1e-5),
        )
        for transposed in (False, True)
        for name, rows, k, n, offsets, dtype, layout in _SHAPES
    )


def _weight_cases() -> tuple[OpCase, ...]:
    return tuple(
        OpCase(
            name,
            {
                "x": TensorSpec((rows, k), dtype, layout=layout),
                "dy": TensorSpec((rows, n), dtype, layout=layout),
                "offsets": TensorSpec((len(offsets),), "int64", values=offsets),
            },
            exactness=Exactness(ulps=2, relative=1e-5),
        )
        for name, rows, k, n, offsets, dtype, layout in _SHAPES
    )


DEFINITIONS = (
    OpDefinition(
        schema="grouped_matmul(Tensor x, Tensor w, Tensor offsets, bool transposed) -> Tensor",
        check=_check,
        reference=_reference,
        fake=lambda x, w, offsets, transposed: x.new_empty((x.shape[0], w.shape[1 if transposed else 2])),
        autograd=Autograd(_differentiate, _setup_context),
        cases=_cases(),
        flops=lambda x, w, offsets, transposed, **_: 2 * x[0] * w[1] * w[2],
    ),
    OpDefinition(
        schema="grouped_matmul_weight(Tensor x, Tensor dy, Tensor offsets) -> Tensor",
        check=_check_weight,
        reference=_reference_weight,
        fake=lambda x, dy, offsets: x.new_empty((offsets.shape[0] - 1, x.shape[1], dy.shape[1])),
        autograd=None,
        cases=_weight_cases(),
        flops=lambda x, dy, offsets, **_: 2 * x[0] * x[1] * dy[1],
    ),
)
