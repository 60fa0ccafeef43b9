"""Rows moved by index against plain torch in double precision, and errors for indices that name no row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def leaf(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def compare(ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    exact = [t.detach().double().requires_grad_() for t in inputs]
    tolerance = TOLERANCE[inputs[0].dtype]
    y, want = ours(*inputs), theirs(*exact)
    assert y.dtype == inputs[0].dtype and y.shape == want.shape
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    found = torch.autograd.grad(y, inputs, dy)
    for got, right in zip(found, torch.autograd.grad(want, exact, dy.double()), strict=True):
        torch.testing.assert_close(got.double(), right, rtol=4 * tolerance, atol=8 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gathered_rows_are_torchs_and_their_gradient_adds_up(dtype: torch.dtype) -> None:
    index = torch.tensor([4, 0, 4, 4, 2])
    compare(lambda x: ops.gather_rows(x, index), lambda x: x[index], leaf(6, 20, dtype=dtype))


def test_rows_are_gathered_in_each_batch() -> None:
    index = torch.randint(0, 6, (3, 4))
    compare(
        lambda x: ops.gather_rows(x, index),
        lambda x: x.gather(1, index.unsqueeze(-1).expand(3, 4, 5)),
        leaf(3, 6, 5),
    )
    ids = torch.arange(18).view(3, 6)
    assert torch.equal(ops.gather_rows(ids, index), ids.gather(1, index))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scattered_rows_are_summed(dtype: torch.dtype) -> None:
    index = torch.tensor([4, 0, 4, 4, 2])
    compare(
        lambda x: ops.scatter_rows(x, index, 6),
        lambda x: x.new_zeros(6, 20).index_add(0, index, x),
        leaf(5, 20, dtype=dtype),
    )
    compare(
        lambda x, w: ops.scatter_rows(x, index, 6, w),
        lambda x, w: x.new_zeros(6, 20).index_add(0, index, x * w.unsqueeze(-1)),
        leaf(5, 20, dtype=dtype),
        leaf(5, dtype=dtype, seed=1),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_combined_rows_are_weighted_sums(dtype: torch.dtype) -> None:
    index = torch.tensor([[0, 3], [5, -1], [-1, -1], [3, 0]])

    def plain(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        kept = (index >= 0).unsqueeze(-1)
        return (x[index.clamp(min=0)] * weights.unsqueeze(-1) * kept).sum(1)

    compare(
        lambda x, w: ops.combine_rows(x, index, w), plain, leaf(6, 20, dtype=dtype), leaf(4, 2, dtype=dtype, seed=1)
    )


def test_a_mixture_of_experts_there_and_back() -> None:
    tokens, experts, dim, chosen = 30, 4, 8, 2
    x = leaf(tokens, dim)
    scores, expert = torch.rand(tokens, experts).softmax(-1).topk(chosen)
    order = expert.reshape(-1).argsort(stable=True)  # slots, expert by expert
    slots = ops.gather_rows(x, order // chosen)
    where = torch.empty_like(order)
    where[order] = torch.arange(order.numel())
    scale = expert.reshape(-1)[order].add(1).unsqueeze(-1)  # what each expert does: multiply by its number
    y = ops.combine_rows(slots * scale, where.view(tokens, chosen), scores)
    want = (x.unsqueeze(1) * (expert + 1).unsqueeze(-1) * scores.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(*(torch.autograd.grad(t.square().sum(), [x])[0] for t in (y, want)))


def test_kept_tokens_go_through_a_layer_and_back_among_the_others() -> None:
    x = leaf(2, 7, 4)
    kept = torch.stack([torch.randperm(7)[:3].sort().values for _ in range(2)])
    where = kept.unsqueeze(-1).expand(2, 3, 4)
    y = ops.replace_rows(x, ops.gather_rows(x, kept) * 5, kept)
    want = x.scatter(1, where, x.gather(1, where) * 5)
    assert torch.equal(y, want)
    assert torch.equal(*(torch.autograd.grad(t.square().sum(), [x])[0] for t in (y, want)))


def test_rows_replaced_by_zeros() -> None:
    base = torch.ones(4, 3)
    assert torch.equal(ops.replace_rows(base, None, torch.tensor([1, 3])).sum(1), torch.tensor([3.0, 0.0, 3.0, 0.0]))
    assert (base == 1).all()


def test_sums_do_not_depend_on_the_order_of_threads() -> None:
    x, index = torch.randn(5000, 64), torch.randint(0, 3, (5000,))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(ops.scatter_rows(x, index, 3))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("bad", [6, -1, -(2**62), 2**62])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, i: ops.gather_rows(x, i),
        lambda x, i: ops.scatter_rows(x[:3], i, 6),
        lambda x, i: ops.scatter_rows(x[:3], i, 6, torch.ones(3)),
        lambda x, i: ops.replace_rows(x, x[:3], i),
        lambda x, i: ops.combine_rows(x, torch.where(i == -1, -2, i).unsqueeze(-1), torch.ones(3, 1)),
        lambda x, i: torch.ops.ds.scatter_rows_backward(x, x[:3], i, torch.ones(3)),
        lambda x, i: torch.ops.ds.combine_rows_backward(
            x[:3], x, torch.where(i == -1, -2, i).unsqueeze(-1), torch.ones(3, 1)
        ),
    ],
)
def test_an_index_that_names_no_row_is_named(call: Callable[..., Any], bad: int) -> None:
    with pytest.raises(
        OpError, match=r"index\[2(, 0)?\] is (6|-1|-2|-4611686018427387904|4611686018427387904); allowed"
    ):
        call(torch.zeros(6, 4), torch.tensor([0, 5, bad]))


def test_rows_of_an_empty_tensor() -> None:
    with pytest.raises(OpError, match="no value at all, for there are no rows"):
        ops.gather_rows(torch.zeros(0, 4), torch.tensor([0]))
    assert ops.gather_rows(torch.zeros(0, 4), torch.tensor([], dtype=torch.int64)).shape == (0, 4)
    assert (ops.scatter_rows(torch.zeros(0, 4), torch.tensor([], dtype=torch.int64), 3) == torch.zeros(3, 4)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, i: ops.gather_rows(x, i.int()), "index must be int64, got int32"),
        (lambda x, i: ops.gather_rows(x, i.view(1, 3)), r"x must be \[..., rows, columns...\] with the leading"),
        (lambda x, i: ops.replace_rows(x, x, i), r"x must have shape \(3, 4\) \(a row of base for each index\)"),
        (lambda x, i: ops.replace_rows(x, x[:3].half(), i), "x must be float32 on cpu like base, got float16"),
        (lambda x, i: ops.replace_rows(x, x[:3], i.flip(0)), r"index must rise strictly .* got 1 at \[1\] after 2"),
        (lambda x, i: ops.replace_rows(x, x[:3], i * 0), r"index must rise strictly .* got 0 at \[1\] after 0"),
        (lambda x, i: ops.scatter_rows(x, i, 6), r"x must have shape \(3, 4\) \(a row for each index\), got \(6, 4\)"),
        (lambda x, i: ops.scatter_rows(x[:3], i, 6, x[0]), r"weights must have shape \(3,\) \(one for each index\)"),
        (lambda x, i: ops.scatter_rows(x[:3], i, -1), "rows must be 0 or more, got -1"),
        (lambda x, i: ops.combine_rows(x, i, x), r"x must be \[rows, columns\] and index \[tokens, slots\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        call(torch.zeros(6, 4), torch.arange(3))
