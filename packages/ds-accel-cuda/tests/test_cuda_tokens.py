"""Emulated kernels of rows moved by index where conformance cases do not reach: faults, crowds, widths, addresses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ds_accel_cuda.libraries import emulated, emulated_path
from ds_core.errors import OpError
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.testing.emulation import ORDERS, Emulation

KERNELS = KernelOps(emulated(), HostLauncher())
EMULATION = Emulation(emulated_path())

CALLS: dict[str, Callable[[torch.Tensor], object]] = {
    "gather_rows": lambda index: KERNELS.gather_rows(torch.ones(5, 7), index),
    "replace_rows": lambda index: KERNELS.replace_rows(torch.ones(5, 7), None, index),
    "scatter_rows": lambda index: KERNELS.scatter_rows(torch.ones(3, 7), index, None, 5),
    "scatter_rows_backward": lambda index: KERNELS.scatter_rows_backward(
        torch.ones(5, 7), torch.ones(3, 7), index, torch.ones(3)
    ),
    "combine_rows": lambda index: KERNELS.combine_rows(torch.ones(5, 7), index.view(1, 3), torch.ones(1, 3)),
    "combine_rows_backward": lambda index: KERNELS.combine_rows_backward(
        torch.ones(1, 7), torch.ones(5, 7), index.view(1, 3), torch.ones(1, 3)
    ),
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("value", (5, -2, 2**62, -(2**63)))
@pytest.mark.parametrize("name", CALLS)
def test_an_index_that_names_no_row_is_an_error(name: str, value: int) -> None:
    with pytest.raises(OpError, match=rf"{name}: index\[.*1\] is {value}"):
        CALLS[name](torch.tensor([0, value, 3]))


@pytest.mark.parametrize("index", ([2, 1, 3], [1, 1, 3]))
def test_indices_of_replaced_rows_rise(index: list[int]) -> None:
    with pytest.raises(OpError, match="rise strictly"):
        CALLS["replace_rows"](torch.tensor(index))


def in_order(rows: int, index: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """Row by row, each source added to what is there."""
    total = torch.zeros(rows, terms.shape[1])
    for row, term in zip(index.tolist(), terms, strict=True):
        total[row] += term
    return total


def test_a_crowd_at_one_row_is_added_in_order_whoever_comes_first() -> None:
    index = torch.full((3000,), 4)
    index[::7] = 1
    x, weights = random(3000, 3), random(3000, seed=1)
    wanted = in_order(6, index, x * weights.unsqueeze(1))
    for order in ORDERS:
        with EMULATION.order(order):
            assert torch.equal(KERNELS.scatter_rows(x, index, weights, 6), wanted), order


def test_gradients_of_a_crowded_row_are_added_in_order_whoever_comes_first() -> None:
    index = torch.full((700, 3), 2)
    index[:, 1] = -1
    index[::5, 2] = 0
    dy, x, weights = random(700, 5), random(4, 5), random(700, 3, seed=1)
    named = index.view(-1) >= 0
    terms = (dy.unsqueeze(1) * weights.unsqueeze(-1)).view(-1, 5)
    wanted = in_order(4, index.view(-1)[named], terms[named])
    for order in ORDERS:
        with EMULATION.order(order):
            dx, dweights = KERNELS.combine_rows_backward(dy, x, index, weights)
            assert torch.equal(dx, wanted), order
            assert not dweights[:, 1].any()


@pytest.mark.parametrize("offset", (0, 1, 2, 4, 8))
@pytest.mark.parametrize("row_bytes", (1, 2, 3, 4, 6, 8, 12, 16, 17, 40, 48))
def test_rows_of_any_length_at_any_address(row_bytes: int, offset: int) -> None:
    memory = torch.randint(0, 256, (offset + 10 * row_bytes,), dtype=torch.uint8)
    x = memory[offset:].view(10, row_bytes)
    index = torch.tensor([9, 0, 3, 3])
    assert torch.equal(KERNELS.gather_rows(x, index), x[index])
    rising = torch.tensor([2, 3, 9])
    wanted = x.clone()
    wanted[rising] = x[:3]
    assert torch.equal(KERNELS.replace_rows(x, x[:3], rising), wanted)


def test_few_wide_rows_are_shared_by_several_blocks() -> None:
    x = random(3, 30_001)
    index = torch.tensor([2, 0])
    assert torch.equal(KERNELS.gather_rows(x, index), x[index])
    wanted = torch.zeros(3, 30_001)
    wanted[1] = x[0] + x[1]
    wanted[0] = x[2]
    assert torch.equal(KERNELS.scatter_rows(x, torch.tensor([1, 1, 0]), None, 3), wanted)


def test_sums_do_not_depend_on_where_rows_lie() -> None:
    x, dy = random(6, 300), random(4, 300, seed=1)
    index, weights = torch.tensor([0, 3, 1, 1, 2, 0]), random(6, seed=2)
    moved = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    for one, other in zip(
        KERNELS.scatter_rows_backward(dy, x, index, weights),
        KERNELS.scatter_rows_backward(dy, moved, index, weights),
        strict=True,
    ):
        assert torch.equal(one, other)
