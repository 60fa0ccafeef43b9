"""scatter_rows: rows added where an index says, forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops._tokens_common import SHAPES, check_rows, check_weights, expanded, flat_index
from ds_core.ops.case import Exactness, Fill, OpCase, TensorSpec
from ds_core.ops.checks import expect_dtype, expect_rows_exist, expect_shape
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "scatter_rows"]


def scatter_rows(x: torch.Tensor, index: torch.Tensor, rows: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """``y[..., r, :]``: the sum of ``weights[..., m] * x[..., m, :]`` over the m with ``index[..., m] == r``.

    Added in float32 in the order of m, whatever the number of threads, and rounded once; rows that the index does not
    name are 0. The inverse of `gather_rows`. Differentiable in `x` and `weights`.

    Args:
        x: [..., taken, columns...], float32, bfloat16 or float16.
        index: [..., taken] int64 with the same leading dimensions.
        rows: rows of the result.
        weights: shaped like `index`, float32, bfloat16 or float16; None for 1.

    Raises:
        OpError: a shape or dtype does not fit, or an index names no row.
    """
    wanted = torch.is_grad_enabled() and (x.requires_grad or (weights is not None and weights.requires_grad))
    y: torch.Tensor
    if is_plain(x) and not wanted:
        y = run(DEFINITIONS[0], x, index, weights, rows)
    else:
        y = torch.ops.ds.scatter_rows(x, index, weights, rows)
    return y


def _check(x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None, rows: int) -> None:
    op = "scatter_rows"
    expect_dtype(op, "x", x)
    check_rows(op, "x", x, index)
    expect_shape(op, "x", x, (*index.shape, *x.shape[index.dim() :]), "a row for each index")
    if weights is not None:
        check_weights(op, weights, index)
    if rows < 0:
        raise OpError(f"{op}: rows must be 0 or more, got {rows}.")


def _check_backward(dy: torch.Tensor, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> None:
    op = "scatter_rows_backward"
    check_rows(op, "dy", dy, index)
    _check(x, index, weights, dy.shape[index.dim() - 1])
    expect_dtype(op, "dy", dy, (x.dtype,))
    expect_shape(op, "dy", dy, (*dy.shape[: index.dim()], *x.shape[index.dim() :]), "rows like x's")


def _reference(x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None, rows: int) -> torch.Tensor:
    expect_rows_exist("scatter_rows", "index", index, rows)
    values = x.float()
    if weights is not None:
        values = values * expanded(weights.float(), x)
    columns = x.shape[index.dim() :]
    sums = values.new_zeros((index.shape[:-1].numel() * rows, *columns))
    sums.index_add_(0, flat_index(index, rows), values.reshape(index.numel(), *columns))
    return sums.reshape(*index.shape[:-1], rows, *columns).to(x.dtype)


def _reference_backward(
    dy: torch.Tensor, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = dy.shape[index.dim() - 1], x.shape[index.dim() :]
    expect_rows_exist("scatter_rows_backward", "index", index, rows)
    flat = dy.reshape(index.shape[:-1].numel() * rows, *columns).float()
    gradient = flat.index_select(0, flat_index(index, rows)).reshape(x.shape)
    dx = (gradient * expanded(weights.float(), x)).to(x.dtype)
    products = (gradient * x.float().contiguous()).reshape(*index.shape, columns.numel())
    return dx, products.sum(-1).to(weights.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, index, weights, _ = inputs
    ctx.weighted = weights is not None
    ctx.save_for_backward(*((x, index, weights) if ctx.weighted else (index,)))


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    if not ctx.weighted:
        return torch.ops.ds.gather_rows(dy, *ctx.saved_tensors), None, None, None
    dx, dweights = torch.ops.ds.scatter_rows_backward(dy, *ctx.saved_tensors)
    return dx, None, dweights, None


_EXACTNESS = Exactness(ulps=1, relative=1e-6)
_CASES = tuple(
    OpCase(
        f"{name}_{weights or 'unweighted'}",
        {
            "x": TensorSpec((*batch, taken, *columns), dtype, layout=layout),
            "index": TensorSpec((*batch, taken), "int64", Fill.INDICES, rows),
            "weights": None if weights is None else TensorSpec((*batch, taken), weights),
        },
        {"rows": rows},
        exactness=_EXACTNESS,
    )
    for weights in (None, "float32", "bfloat16")
    for name, batch, rows, taken, columns, dtype, layout in SHAPES
)
_BACKWARD_CASES = tuple(
    OpCase(
        f"{name}_{weights}",
        {
            "dy": TensorSpec((*batch, rows, *columns), dtype, layout=layout),
            "x": TensorSpec((*batch, taken, *columns), dtype, layout=layout),
            "index": TensorSpec((*batch, taken), "int64", Fill.INDICES, rows),
            "weights": TensorSpec((*batch, taken), weights),
        },
        exactness=Exactness(ulps=1, relative=5e-6),
    )
    for weights in ("float32", "float16")
    for name, batch, rows, taken, columns, dtype, layout in SHAPES
)

DEFINITIONS = (
    OpDefinition(
        schema="scatter_rows(Tensor x, Tensor index, Tensor? weights, int rows) -> Tensor",
        check=_check,
        reference=_reference,
        fake=lambda x, index, weights, rows: x.new_empty((*index.shape[:-1], rows, *x.shape[index.dim() :])),
        autograd=Autograd(_differentiate, _setup_context),
        cases=_CASES,
    ),
    OpDefinition(
        schema="scatter_rows_backward(Tensor dy, Tensor x, Tensor index, Tensor weights) -> (Tensor, Tensor)",
        check=_check_backward,
        reference=_reference_backward,
        fake=lambda dy, x, index, weights: (
            torch.empty_like(x, memory_format=torch.contiguous_format),
            torch.empty_like(weights, memory_format=torch.contiguous_format),
        ),
        autograd=None,
        cases=_BACKWARD_CASES,
    ),
)
