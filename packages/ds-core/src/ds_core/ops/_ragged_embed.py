"""ragged_embed: embeddings of the tokens of many sequences at once, without padding.

Note [Ragged tokens]
    The tokens of all sequences of a step follow each other in one dimension, whatever each sequence brings: a whole
    prompt, a part of one, a single token. What names the place of a token in its sequence is its position. The hidden
    states that logits are made of, those of each sequence's last token, are ``gather_rows(hidden, ends - 1)`` with
    `ends` the running sum of the tokens of sequences; no op of its own is needed.
"""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_device, expect_dtype, expect_index, expect_rows_exist, expect_shape
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "TABLES", "ragged_embed"]

TABLES = (("tokens", "weight"), ("positions", "position_weight"), ("types", "type_weight"))
"""Each index and the table whose rows it names."""


def ragged_embed(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    positions: torch.Tensor | None = None,
    position_weight: torch.Tensor | None = None,
    types: torch.Tensor | None = None,
    type_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """``weight[tokens] + position_weight[positions] + type_weight[types]``, added in float32 and rounded once.

    See Note [Ragged tokens]. Differentiable in the tables.

    Args:
        tokens: [tokens] int64.
        weight: [vocabulary, columns], float32, bfloat16 or float16.
        positions, types: like `tokens`, or None. A model whose table of positions begins with rows of its own (OPT's
            two) is given ``positions + 2``.
        position_weight, type_weight: [rows, columns] in the dtype of `weight`; given exactly if their index is.

    Returns:
        [tokens, columns] in the dtype of `weight`.

    Raises:
        OpError: an argument does not fit, or an index names no row.
    """
    arguments = (weight, tokens, positions, position_weight, types, type_weight)
    tables = (weight, position_weight, type_weight)
    learns = torch.is_grad_enabled() and any(table is not None and table.requires_grad for table in tables)
    y: torch.Tensor
    y = run(DEFINITIONS[0], *arguments) if is_plain(weight) and not learns else torch.ops.ds.ragged_embed(*arguments)
    return y


def _check(
    weight: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor | None,
    position_weight: torch.Tensor | None,
    types: torch.Tensor | None,
    type_weight: torch.Tensor | None,
) -> None:
    op = "ragged_embed"
    expect_dtype(op, "weight", weight)
    if weight.dim() != 2 or tokens.dim() != 1:
        raise OpError(
            f"{op}: weight must be [vocabulary, columns] and tokens [tokens], got {tuple(weight.shape)} and "
            f"{tuple(tokens.shape)}."
        )
    indices, tables = (tokens, positions, types), (weight, position_weight, type_weight)
    for (index_name, table_name), index, table in zip(TABLES, indices, tables, strict=True):
        if (index is None) != (table is None):
            absent, given = (index_name, table_name) if index is None else (table_name, index_name)
            raise OpError(f"{op}: {absent} must be given with {given}, got None. Give both, or neither.")
        if index is None or table is None:
            continue
        expect_index(op, index_name, index, "weight", weight.device)
        expect_shape(op, index_name, index, tokens.shape, "one for each token")
        expect_dtype(op, table_name, table, (weight.dtype,))
        expect_device(op, table_name, table, "weight", weight.device)
        if table.dim() != 2 or table.shape[1] != weight.shape[1]:
            raise OpError(f"{op}: {table_name} must be [rows, {weight.shape[1]}], got {tuple(table.shape)}.")


def _reference(
    weight: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor | None,
    position_weight: torch.Tensor | None,
    types: torch.Tensor | None,
    type_weight: torch.Tensor | None,
) -> torch.Tensor:
    indices, tables = (tokens, positions, types), (weight, position_weight, type_weight)
    total = None
    for (name, _), index, table in zip(TABLES, indices, tables, strict=True):
        if index is not None and table is not None:
            expect_rows_exist("ragged_embed", name, index, table.shape[0])
            rows = table.index_select(0, index).float()
            total = rows if total is None else total + rows
    return torch.as_tensor(total).to(weight.dtype, copy=True)


def _fake(
    weight: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor | None,
    position_weight: torch.Tensor | None,
    types: torch.Tensor | None,
    type_weight: torch.Tensor | None,
) -> torch.Tensor:
    return weight.new_empty((tokens.shape[0], weight.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    weight, tokens, positions, position_weight, types, type_weight = inputs
    ctx.rows = [None if table is None else table.shape[0] for table in (weight, position_weight, type_weight)]
    ctx.save_for_backward(tokens, positions, types)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[3], ctx.needs_input_grad[5])
    dweight, dpositions, dtypes = (
        torch.ops.ds.scatter_rows(dy, index, None, rows) if want else None
        for want, index, rows in zip(wanted, ctx.saved_tensors, ctx.rows, strict=True)
    )
    return dweight, None, None, dpositions, None, dtypes


_SHAPES = (
    # name, tokens, vocabulary, columns, positions, types, dtype, layout
    ("tokens_alone", 30, 50, 64, 0, 0, "float32", Layout.CONTIGUOUS),
    ("tokens_alone_bfloat16", 30, 50, 65, 0, 0, "bfloat16", Layout.CONTIGUOUS),
    ("positions", 17, 40, 33, 100, 0, "float32", Layout.CONTIGUOUS),
    ("positions_bfloat16", 17, 40, 72, 100, 0, "bfloat16", Layout.CONTIGUOUS),
    ("positions_float16", 130, 40, 8, 100, 0, "float16", Layout.CONTIGUOUS),
    ("types", 9, 40, 19, 0, 2, "float16", Layout.CONTIGUOUS),
    ("all", 21, 40, 40, 60, 3, "bfloat16", Layout.CONTIGUOUS),
    ("all_float32", 21, 40, 41, 60, 3, "float32", Layout.CONTIGUOUS),
    ("wide", 3, 5, 3001, 6, 2, "float32", Layout.CONTIGUOUS),
    ("no_tokens", 0, 5, 8, 6, 0, "float32", Layout.CONTIGUOUS),
    ("no_columns", 4, 5, 0, 6, 0, "float32", Layout.CONTIGUOUS),
    ("transposed", 12, 10, 24, 9, 2, "float32", Layout.TRANSPOSED),
    ("strided", 12, 10, 24, 9, 0, "bfloat16", Layout.STRIDED),
    ("unaligned", 11, 9, 21, 9, 2, "float16", Layout.OFFSET),
)


def _case(
    name: str, tokens: int, vocabulary: int, columns: int, positions: int, types: int, dtype: str, layout: Layout
) -> OpCase:
    def table(rows: int) -> TensorSpec:
        return TensorSpec((rows, columns), dtype, layout=layout)

    def index(rows: int) -> TensorSpec:
        flat = Layout.CONTIGUOUS if layout is Layout.TRANSPOSED else layout
        return TensorSpec((tokens,), "int64", Fill.INDICES, rows, flat)

    return OpCase(
        name,
        {
            "weight": table(vocabulary),
            "tokens": index(vocabulary),
            "positions": index(positions) if positions else None,
            "position_weight": table(positions) if positions else None,
            "types": index(types) if types else None,
            "type_weight": table(types) if types else None,
        },
        exactness=Exactness(),
    )


DEFINITIONS = (
    OpDefinition(
        schema=(
            "ragged_embed(Tensor weight, Tensor tokens, Tensor? positions, Tensor? position_weight, Tensor? types, "
            "Tensor? type_weight) -> Tensor"
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=Autograd(_differentiate, _setup_context),
        cases=tuple(_case(*shape) for shape in _SHAPES),
    ),
)
