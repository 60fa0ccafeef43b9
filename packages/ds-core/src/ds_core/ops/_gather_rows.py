"""gather_rows and replace_rows: rows taken out by index, and put back where they were."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops._tokens_common import SHAPES, check_rows, expanded, flat_index
from ds_core.ops.case import Fill, OpCase, TensorSpec
from ds_core.ops.checks import expect_rows_exist, expect_shape, name_of
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "expect_rising", "gather_rows", "replace_rows"]


def gather_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``y[..., m, :] = x[..., index[..., m], :]``: rows in the order of the index; differentiable in `x`.

    For MoE, `x` [tokens, dim] and the token of each slot of each expert; for random-LTD, `x` [batch, sequence, dim]
    and the kept positions [batch, kept].

    Args:
        x: [..., rows, columns...] of any dtype and strides.
        index: [..., taken] int64 with the same leading dimensions; a row may be named more than once.

    Returns:
        [..., taken, columns...], dense. The gradient adds what the copies of a row receive, in the order of the index.

    Raises:
        OpError: a shape or dtype does not fit, or an index names no row.
    """
    y: torch.Tensor
    if is_plain(x) and not (torch.is_grad_enabled() and x.requires_grad):
        y = run(DEFINITIONS[0], x, index)
    else:
        y = torch.ops.ds.gather_rows(x, index)
    return y


def replace_rows(base: torch.Tensor, x: torch.Tensor | None, index: torch.Tensor) -> torch.Tensor:
    """A copy of `base` with ``y[..., index[..., m], :] = x[..., m, :]``; differentiable in both.

    For random-LTD: the tokens that a layer worked on, put back among those that passed by.

    Args:
        base: [..., rows, columns...] of any dtype and strides.
        x: [..., taken, columns...] in the dtype of `base`, or None for zeros.
        index: [..., taken] int64, strictly rising along its last dimension.

    Raises:
        OpError: a shape or dtype does not fit, or an index names no row or does not rise.

    Source: Z. Yao et al., "Random-LTD: Random and Layerwise Token Dropping", 2022, section 3.
    """
    wanted = torch.is_grad_enabled() and (base.requires_grad or (x is not None and x.requires_grad))
    y: torch.Tensor
    y = (
        run(DEFINITIONS[1], base, x, index)
        if is_plain(base) and not wanted
        else torch.ops.ds.replace_rows(base, x, index)
    )
    return y


def expect_rising(op: str, index: torch.Tensor) -> None:
    """The values of an index rise strictly along its last dimension."""
    falls = index[..., 1:] <= index[..., :-1]
    if bool(falls.any()):
        place = falls.nonzero()[0].tolist()
        place[-1] += 1
        raise OpError(
            f"{op}: index must rise strictly along its last dimension, got {int(index[tuple(place)])} at {place} after "
            f"{int(index[(*place[:-1], place[-1] - 1)])}. Sort it."
        )


def _check_gather(x: torch.Tensor, index: torch.Tensor) -> None:
    check_rows("gather_rows", "x", x, index)


def _check_replace(base: torch.Tensor, x: torch.Tensor | None, index: torch.Tensor) -> None:
    check_rows("replace_rows", "base", base, index)
    if x is None:
        return
    expect_shape("replace_rows", "x", x, (*index.shape, *base.shape[index.dim() :]), "a row of base for each index")
    if x.dtype != base.dtype or x.device != base.device:
        raise OpError(
            f"replace_rows: x must be {name_of(base.dtype)} on {base.device} like base, "
            f"got {name_of(x.dtype)} on {x.device}."
        )


def _reference_gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    rows = x.shape[index.dim() - 1]
    expect_rows_exist("gather_rows", "index", index, rows)
    columns = x.shape[index.dim() :]
    flat = x.reshape(index.shape[:-1].numel() * rows, *columns)
    return flat.index_select(0, flat_index(index, rows)).reshape(*index.shape, *columns)


def _reference_replace(base: torch.Tensor, x: torch.Tensor | None, index: torch.Tensor) -> torch.Tensor:
    expect_rows_exist("replace_rows", "index", index, base.shape[index.dim() - 1])
    expect_rising("replace_rows", index)
    y = base.clone(memory_format=torch.contiguous_format)
    where = expanded(index, base).expand(*index.shape, *base.shape[index.dim() :])
    if x is None:
        return y.scatter_(index.dim() - 1, where, 0)
    return y.scatter_(index.dim() - 1, where, x)


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, index = inputs
    ctx.rows = x.shape[index.dim() - 1]
    ctx.save_for_backward(index)


def _differentiate_gather(ctx: Any, dy: torch.Tensor) -> tuple[Any, None]:
    (index,) = ctx.saved_tensors
    return torch.ops.ds.scatter_rows(dy, index, None, ctx.rows), None


def _setup_replace(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    base, x, index = inputs
    ctx.wanted = base.requires_grad, x is not None and x.requires_grad
    ctx.save_for_backward(index)


def _differentiate_replace(ctx: Any, dy: torch.Tensor) -> tuple[Any, Any, None]:
    (index,) = ctx.saved_tensors
    dbase = torch.ops.ds.replace_rows(dy, None, index) if ctx.wanted[0] else None
    return dbase, torch.ops.ds.gather_rows(dy, index) if ctx.wanted[1] else None, None


_GATHER_CASES = (
    *(
        OpCase(
            name,
            {
                "x": TensorSpec((*batch, rows, *columns), dtype, layout=layout),
                "index": TensorSpec((*batch, taken), "int64", Fill.INDICES, rows),
            },
        )
        for name, batch, rows, taken, columns, dtype, layout in SHAPES
    ),
    OpCase(
        "whole_numbers",
        {
            "x": TensorSpec((2, 30), "int64", Fill.INTEGERS),
            "index": TensorSpec((2, 9), "int64", Fill.INDICES, 30),
        },
    ),
)
_REPLACE_CASES = tuple(
    OpCase(
        f"{name}_{'zeros' if zeros else 'rows'}",
        {
            "base": TensorSpec((*batch, rows, *columns), dtype, layout=layout),
            "x": None if zeros else TensorSpec((*batch, min(rows, taken), *columns), dtype, layout=layout),
            "index": TensorSpec((*batch, min(rows, taken)), "int64", Fill.RISING, rows),
        },
    )
    for zeros in (False, True)
    for name, batch, rows, taken, columns, dtype, layout in SHAPES
)

DEFINITIONS = (
    OpDefinition(
        schema="gather_rows(Tensor x, Tensor index) -> Tensor",
        check=_check_gather,
        reference=_reference_gather,
        fake=lambda x, index: x.new_empty((*index.shape, *x.shape[index.dim() :])),
        autograd=Autograd(_differentiate_gather, _setup_gather),
        cases=_GATHER_CASES,
    ),
    OpDefinition(
        schema="replace_rows(Tensor base, Tensor? x, Tensor index) -> Tensor",
        check=_check_replace,
        reference=_reference_replace,
        fake=lambda base, x, index: torch.empty_like(base, memory_format=torch.contiguous_format),
        autograd=Autograd(_differentiate_replace, _setup_replace),
        cases=_REPLACE_CASES,
    ),
)
