from __future__ import annotations

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_sum_of_squares_in_double_precision(dtype: torch.dtype) -> None:
    x = torch.randn(100_003, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = ops.sum_of_squares(x)
    assert got.shape == () and got.dtype == torch.float64
    torch.testing.assert_close(got, x.double().square().sum(), rtol=1e-14, atol=0)


def test_what_float32_sums_would_lose_is_kept() -> None:
    x = torch.full((3_000_000,), 1e-3)
    x[0] = 1000.0
    assert ops.sum_of_squares(x).item() == pytest.approx(1e6 + 3.0, abs=1e-5)


def test_nothing_sums_to_zero_and_infinities_and_nans_come_through() -> None:
    assert ops.sum_of_squares(torch.zeros(0)).item() == 0.0
    assert ops.sum_of_squares(torch.tensor([1.0, float("-inf")])).item() == float("inf")
    assert ops.sum_of_squares(torch.tensor([float("nan"), 1.0])).isnan()
    assert ops.sum_of_squares(torch.full((4,), 3e38)).item() == pytest.approx(3.6e77)


def test_how_a_vector_is_cut_moves_the_sum_by_a_few_units_at_most() -> None:
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    whole = ops.sum_of_squares(x)
    for cut in (1, 1000, 65_536, 123_457):
        torch.testing.assert_close(ops.sum_of_squares(x[:cut]) + ops.sum_of_squares(x[cut:]), whole, rtol=1e-14, atol=0)


def test_other_tensors_are_refused() -> None:
    with pytest.raises(OpError, match=r"sum_of_squares: x must be 1-D, got shape \(2, 2\)"):
        ops.sum_of_squares(torch.zeros(2, 2))
    with pytest.raises(OpError, match="x must be float32, bfloat16, float16, got int64"):
        ops.sum_of_squares(torch.zeros(2, dtype=torch.int64))


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.ds.sum_of_squares.default, (torch.randn(100),))
