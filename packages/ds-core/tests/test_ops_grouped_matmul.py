"""Products of runs of rows against a loop over linear layers, forward and backward, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ds_core import ops
from ds_core.errors import OpError

COUNTS = (5, 0, 17, 1, 0, 9)


def offsets_of(counts: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([sum(counts[:group]) for group in range(len(counts) + 1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_linear_layers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 40, bias=False, dtype=dtype) for _ in COUNTS]
    x = torch.randn(sum(COUNTS), 24, dtype=dtype, requires_grad=True)
    dy = torch.randn(sum(COUNTS), 40, dtype=dtype)
    want = torch.cat([layer(rows) for layer, rows in zip(layers, x.split(COUNTS), strict=True)])
    want.backward(dy)
    want_dx, x.grad = x.grad, None

    w = torch.stack([layer.weight.detach() for layer in layers]).requires_grad_()
    y = ops.grouped_matmul(x, w, offsets_of(COUNTS), transposed=True)
    y.backward(dy)
    assert torch.equal(y, want) and x.grad is not None and torch.equal(x.grad, want_dx)
    for group, layer in enumerate(layers):
        assert torch.equal(w.grad[group], layer.weight.grad)


def test_the_two_layouts_agree() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(32, 7), torch.randn(len(COUNTS), 7, 5, requires_grad=True)
    there = ops.grouped_matmul(x, w, offsets_of(COUNTS))
    there.sum().backward()
    turned = w.detach().transpose(1, 2).contiguous().requires_grad_()
    back = ops.grouped_matmul(x, turned, offsets_of(COUNTS), transposed=True)
    back.sum().backward()
    torch.testing.assert_close(there, back)
    torch.testing.assert_close(w.grad, turned.grad.transpose(1, 2))


def test_rows_behind_the_last_group_give_zeros_and_get_no_gradient() -> None:
    x, w = torch.randn(10, 4, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    y = ops.grouped_matmul(x, w, torch.tensor([0, 2, 6]))
    y.sum().backward()
    assert not y[6:].any() and y[:6].all()
    assert not x.grad[6:].any() and x.grad[:6].all()


def test_a_group_without_rows_has_a_gradient_of_zeros() -> None:
    w = torch.randn(3, 4, 3, requires_grad=True)
    ops.grouped_matmul(torch.randn(5, 4), w, torch.tensor([0, 5, 5, 5])).sum().backward()
    assert w.grad[0].all() and not w.grad[1:].any()


def test_torchs_flop_counter_counts_it_there_and_back() -> None:
    x, w = torch.randn(8, 4, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        ops.grouped_matmul(x, w, torch.tensor([0, 3, 8])).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 8 * 4 * 3


@pytest.mark.parametrize("offsets", [[1, 4, 8], [0, 5, 4], [0, 4, 9]])
def test_offsets_that_are_off_are_refused(offsets: list[int]) -> None:
    with pytest.raises(OpError, match="never fall and end at 8"):
        ops.grouped_matmul(torch.randn(8, 4), torch.randn(2, 4, 3), torch.tensor(offsets))


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, w = torch.randn(8, 4), torch.randn(2, 4, 3)
    with pytest.raises(OpError, match=r"w \[groups, N, K\], got \(8, 4\) and \(2, 4, 3\)"):
        ops.grouped_matmul(x, w, torch.tensor([0, 3, 8]), transposed=True)
    with pytest.raises(OpError, match=r"offsets must be \[groups \+ 1\] = \[3\]"):
        ops.grouped_matmul(x, w, torch.tensor([0, 8]))
    with pytest.raises(OpError, match="w must be float32"):
        ops.grouped_matmul(x, w.double(), torch.tensor([0, 3, 8]))
