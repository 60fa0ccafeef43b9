"""Embeddings of ragged tokens against torch's, and the last tokens of ragged sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError

TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2])
POSITIONS = torch.tensor([0, 1, 2, 0, 1, 7, 8])  # three sequences, one of them under way
TYPES = torch.tensor([0, 0, 1, 0, 1, 1, 0])


def table(rows: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_are_added_and_rounded_once(dtype: torch.dtype) -> None:
    tables = table(10, dtype), table(9, dtype, 1), table(2, dtype, 2)
    y = ops.ragged_embed(TOKENS, tables[0], POSITIONS, tables[1], TYPES, tables[2])
    exact = [t.detach().double().requires_grad_() for t in tables]
    embed = torch.nn.functional.embedding
    want = embed(TOKENS, exact[0]) + embed(POSITIONS, exact[1]) + embed(TYPES, exact[2])
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)
    dy = torch.randn(7, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    for got, right in zip(
        torch.autograd.grad(y, tables, dy), torch.autograd.grad(want, exact, dy.double()), strict=True
    ):
        torch.testing.assert_close(got.double(), right, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_tokens_alone_and_with_types_alone() -> None:
    weight, types = table(10), table(2, seed=2)
    assert torch.equal(ops.ragged_embed(TOKENS, weight), weight[TOKENS])
    assert torch.equal(ops.ragged_embed(TOKENS, weight, types=TYPES, type_weight=types), weight[TOKENS] + types[TYPES])


def test_a_table_that_learns_nothing_has_no_gradient() -> None:
    weight, positions = table(10), table(9).detach()
    ops.ragged_embed(TOKENS, weight, POSITIONS, positions).sum().backward()
    assert weight.grad is not None and weight.grad.sum() == 7 * 6 and positions.grad is None


def test_the_last_token_of_each_sequence_is_gathered() -> None:
    hidden, ends = ops.ragged_embed(TOKENS, table(10)), torch.tensor([3, 2, 2]).cumsum(0)
    assert torch.equal(ops.gather_rows(hidden, ends - 1), hidden[[2, 4, 6]])


def test_compiled_as_one_graph() -> None:
    weight, positions = table(10), table(9)
    call = torch.compile(
        lambda tokens: ops.ragged_embed(tokens, weight, POSITIONS, positions), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(call(TOKENS), ops.ragged_embed(TOKENS, weight, POSITIONS, positions))


@pytest.mark.parametrize("bad", [9, -1, 2**40])
@pytest.mark.parametrize("name", ["tokens", "positions", "types"])
def test_an_index_that_names_no_row_is_named(name: str, bad: int) -> None:
    given: dict[str, Any] = {
        "tokens": TOKENS.clamp(max=8), "weight": table(9), "positions": POSITIONS, "position_weight": table(9),
        "types": TYPES, "type_weight": table(9),
    }  # fmt: skip
    given[name] = given[name].clone()
    given[name][4] = bad
    with pytest.raises(OpError, match=rf"ragged_embed: {name}\[4\] is {bad}; allowed: 0 to 8. 1 values are off"):
        ops.ragged_embed(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": POSITIONS}, "position_weight must be given with positions, got None"),
        ({"type_weight": table(2)}, "types must be given with type_weight, got None"),
        ({"tokens": TOKENS.int()}, "tokens must be int64, got int32"),
        ({"tokens": TOKENS.view(1, 7)}, r"weight must be \[vocabulary, columns\] and tokens \[tokens\], got"),
        ({"types": TYPES[:5], "type_weight": table(2)}, r"types must have shape \(7,\) \(one for each token\)"),
        ({"types": TYPES, "type_weight": table(2).half()}, "type_weight must be float32, got float16"),
        ({"types": TYPES, "type_weight": table(2)[:, :5]}, r"type_weight must be \[rows, 6\], got \(2, 5\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        ops.ragged_embed(**{"tokens": TOKENS, "weight": table(10), **change})
