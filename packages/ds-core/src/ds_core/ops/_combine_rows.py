"""combine_rows: each token the weighted sum of a few rows, as the end of a mixture of experts; forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops._tokens_common import check_weights
from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_dtype, expect_index, expect_rows_exist, expect_shape
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "combine_rows"]


def combine_rows(x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``y[t] = sum over k of weights[t, k] * x[index[t, k]]``, in float32 in the order of k, rounded once.

    The way back from experts to tokens: `x` holds what the experts made of their slots, ``index[t]`` the slots of a
    token. Differentiable in `x` and `weights`.

    Args:
        x: [rows, columns], float32, bfloat16 or float16.
        index: [tokens, slots a token] int64; -1 adds nothing (a token that an expert had no room for).
        weights: shaped like `index`, float32, bfloat16 or float16.

    Returns:
        [tokens, columns] in the dtype of `x`.

    Raises:
        OpError: a shape or dtype does not fit, or an index names no row.

    Source: N. Shazeer et al., "Outrageously Large Neural Networks", 2017, eq. 1.
    """
    y: torch.Tensor
    if is_plain(x) and not (torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad)):
        y = run(DEFINITIONS[0], x, index, weights)
    else:
        y = torch.ops.ds.combine_rows(x, index, weights)
    return y


def _check(x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> None:
    op = "combine_rows"
    expect_dtype(op, "x", x)
    expect_index(op, "index", index, "x", x.device)
    if x.dim() != 2 or index.dim() != 2:
        raise OpError(
            f"{op}: x must be [rows, columns] and index [tokens, slots], got {tuple(x.shape)} and {tuple(index.shape)}."
        )
    check_weights(op, weights, index)


def _check_backward(dy: torch.Tensor, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> None:
    _check(x, index, weights)
    expect_dtype("combine_rows_backward", "dy", dy, (x.dtype,))
    expect_shape("combine_rows_backward", "dy", dy, (index.shape[0], x.shape[1]), "a row for each token")


def _picked(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[tokens, slots, columns] float32, zeros where there is no row."""
    padded = torch.cat((x.float(), x.new_zeros((1, x.shape[1]), dtype=torch.float32)))
    return padded[torch.where(index < 0, x.shape[0], index)]


def _reference(x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    expect_rows_exist("combine_rows", "index", index, x.shape[0], -1, " for no row")
    terms = _picked(x, index) * torch.where(index < 0, 0.0, weights.float()).unsqueeze(-1)
    total = x.new_zeros((index.shape[0], x.shape[1]), dtype=torch.float32)
    for k in range(index.shape[1]):
        total = total + terms[:, k]
    return total.to(x.dtype)


def _reference_backward(
    dy: torch.Tensor, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    expect_rows_exist("combine_rows_backward", "index", index, x.shape[0], -1, " for no row")
    gradient = dy.float().contiguous()
    dweights = (gradient.unsqueeze(1) * _picked(x, index)).sum(-1)
    terms = gradient.unsqueeze(1) * weights.float().unsqueeze(-1)
    dx = x.new_zeros((x.shape[0] + 1, x.shape[1]), dtype=torch.float32)
    rows = torch.where(index < 0, x.shape[0], index).reshape(-1)
    dx.index_add_(0, rows, terms.reshape(index.numel(), x.shape[1]))
    return dx[:-1].to(x.dtype, copy=True), dweights.to(weights.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    dx, dweights = torch.ops.ds.combine_rows_backward(dy, *ctx.saved_tensors)
    return dx, None, dweights


_SHAPES: tuple[tuple[str, int, int, int, int, str, str, Layout], ...] = (
    *(
        (f"{dtype}_weights_{weights}", 40, 20, 2, 65, dtype, weights, Layout.CONTIGUOUS)
        for dtype in ("float32", "bfloat16", "float16")
        for weights in ("float32", "bfloat16")
    ),
    ("one_slot", 7, 30, 1, 16, "float32", "float32", Layout.CONTIGUOUS),
    ("eight_slots", 600, 700, 8, 24, "bfloat16", "float32", Layout.CONTIGUOUS),
    ("no_slots", 5, 4, 0, 3, "float32", "float32", Layout.CONTIGUOUS),
    ("no_tokens", 5, 0, 2, 3, "float32", "float32", Layout.CONTIGUOUS),
    ("no_columns", 5, 4, 2, 0, "float32", "float32", Layout.CONTIGUOUS),
    ("wide", 4, 5, 2, 3001, "float32", "float16", Layout.CONTIGUOUS),
    ("transposed", 12, 8, 2, 20, "float32", "float32", Layout.TRANSPOSED),
    ("strided", 12, 8, 2, 24, "bfloat16", "float32", Layout.STRIDED),
    ("unaligned", 12, 8, 2, 21, "float16", "float32", Layout.OFFSET),
)
"""(name, rows, tokens, slots, columns, dtype, dtype of the weights, layout)."""


def _cases(backward: bool) -> tuple[OpCase, ...]:
    return tuple(
        OpCase(
            name,
            {
                **({"dy": TensorSpec((tokens, columns), dtype, layout=layout)} if backward else {}),
                "x": TensorSpec((rows, columns), dtype, layout=layout),
                "index": TensorSpec((tokens, slots), "int64", Fill.HOLES, rows),
                "weights": TensorSpec((tokens, slots), weights),
            },
            exactness=Exactness(ulps=1, relative=5e-6 if backward else 1e-6),
        )
        for name, rows, tokens, slots, columns, dtype, weights, layout in _SHAPES
    )


DEFINITIONS = (
    OpDefinition(
        schema="combine_rows(Tensor x, Tensor index, Tensor weights) -> Tensor",
        check=_check,
        reference=_reference,
        fake=lambda x, index, weights: x.new_empty((index.shape[0], x.shape[1])),
        autograd=Autograd(_differentiate, _setup_context),
        cases=_cases(backward=False),
    ),
    OpDefinition(
        schema="combine_rows_backward(Tensor dy, Tensor x, Tensor index, Tensor weights) -> (Tensor, Tensor)",
        check=_check_backward,
        reference=_reference_backward,
        fake=lambda dy, x, index, weights: (
            torch.empty_like(x, memory_format=torch.contiguous_format),
            torch.empty_like(weights, memory_format=torch.contiguous_format),
        ),
        autograd=None,
        cases=_cases(backward=True),
    ),
)
