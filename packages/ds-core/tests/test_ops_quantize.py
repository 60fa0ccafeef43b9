from __future__ import annotations

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group_size", [1, 7, 64, 10_000])
def test_a_round_trip_is_off_by_half_a_step_at_most(dtype: torch.dtype, group_size: int) -> None:
    x = torch.randn(13, 77, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, scales = ops.quantize_int8(x, group_size)
    assert q.dtype == torch.int8 and q.shape == x.shape and scales.dtype == torch.float32
    back = ops.dequantize_int8(q, scales, group_size)
    step = scales.repeat_interleave(group_size)[: x.numel()].view(x.shape)
    assert ((back - x.float()).abs() <= 0.5001 * step).all()
    groups = torch.nn.functional.pad(x.float().view(-1), (0, -x.numel() % group_size)).view(-1, group_size)
    torch.testing.assert_close(scales, groups.abs().amax(1) / 127, rtol=0, atol=0)
    assert q.abs().max() == 127


def test_ties_go_to_even() -> None:
    q, scales = ops.quantize_int8(torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5]), 6)
    assert scales.tolist() == [1.0]
    assert q.tolist() == [127, 0, 2, 2, 0, -2]


def test_a_group_of_zeros_has_scale_one_and_tiny_values_do_not_overflow() -> None:
    q, scales = ops.quantize_int8(torch.tensor([0.0, -0.0, 1e-45, -1e-45]), 2)
    assert scales.tolist() == [1.0, 1.0] and q.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_group_with_a_value_that_is_not_finite_dequantizes_to_nan_and_others_do_not(bad: float) -> None:
    q, scales = ops.quantize_int8(torch.tensor([1.0, bad, 2.0, 3.0]), 2)
    assert not scales[0].isfinite() and scales[1].isfinite()
    back = ops.dequantize_int8(q, scales, 2)
    assert back[:2].isnan().all() and torch.allclose(back[2:], torch.tensor([2.0, 3.0]), rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dequantizing_rounds_once(dtype: torch.dtype) -> None:
    q = torch.arange(-127, 128, dtype=torch.int8)
    scales = torch.tensor([0.0123])
    got = ops.dequantize_int8(q, scales, 255, dtype)
    assert torch.equal(got, (q.float() * scales).to(dtype))


def test_opcheck() -> None:
    q, scales = ops.quantize_int8(torch.randn(10, 10), 32)
    torch.library.opcheck(torch.ops.ds.quantize.default, (torch.randn(10, 10), "e3m2", 32))
    torch.library.opcheck(torch.ops.ds.dequantize.default, (q, scales, None, "int8", 32, (10, 10), torch.bfloat16))


def test_arguments_that_do_not_fit_are_refused() -> None:
    q, scales = ops.quantize_int8(torch.randn(100), 32)
    with pytest.raises(OpError, match="group_size must be 1 or more, got 0"):
        ops.quantize_int8(torch.randn(4), 0)
    with pytest.raises(
        OpError, match=r"scales must have shape \(2,\) \(one scale for every 64 elements of q\), got \(4,\)"
    ):
        ops.dequantize_int8(q, scales, 64)
    with pytest.raises(OpError, match="dtype must be float32, bfloat16, float16, got int32"):
        ops.dequantize_int8(q, scales, 32, torch.int32)
    with pytest.raises(OpError, match="q must be int8, got float32"):
        ops.dequantize_int8(q.float(), scales, 32)
    with pytest.raises(OpError, match="group_size must be a multiple of 2 for int4, got 5"):
        ops.quantize_int4(torch.randn(10), 5)
    with pytest.raises(OpError, match="group_size must be a multiple of 4 for e3m2, got 6"):
        ops.quantize(torch.randn(10), "e3m2", 6)
    with pytest.raises(OpError, match=r"format must be one of int8, .*, got 'e4m3'.*'e4m3fn'"):
        ops.quantize(torch.randn(10), "e4m3", 8)
    with pytest.raises(OpError, match="scaling of e2m1 must be symmetric or power_of_two, got 'asymmetric'"):
        ops.quantize(torch.randn(10), "e2m1", 8, scaling="asymmetric")
    with pytest.raises(
        OpError, match=r"q must have shape \(5,\) \(int4 codes of a tensor of shape \(9,\)\), got \(4,\)"
    ):
        ops.dequantize_int4(torch.zeros(4, dtype=torch.uint8), torch.ones(2), 8, (9,))
    with pytest.raises(OpError, match="zeros must be None for e5m2"):
        zeros = torch.zeros(1, dtype=torch.int8)
        ops.dequantize(torch.zeros(4, dtype=torch.uint8), torch.ones(1), zeros, "e5m2", 8, (4,))
