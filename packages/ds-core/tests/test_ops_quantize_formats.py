from __future__ import annotations

import math

import pytest
import torch

from ds_core import ops
from ds_core.ops._formats import FORMATS, decode, e8m0_to_float, pack_codes, unpack_codes

INTEGERS = ("int8", "int4")
FLOATS = ("e4m3fn", "e5m2", "e3m2", "e2m3", "e2m1")
TORCH = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def normal(numel: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def back(got: ops.Quantized, format: str, group_size: int, like: torch.Tensor) -> torch.Tensor:
    return ops.dequantize(got.q, got.scales, got.zeros, format, group_size, like.shape)


@pytest.mark.parametrize("format", list(FORMATS))
def test_codes_survive_packing(format: str) -> None:
    kind = FORMATS[format]
    codes = torch.randint(0, 2**kind.bits, (1001,), generator=torch.Generator().manual_seed(0))
    packed = pack_codes(codes, kind)
    assert packed.numel() == math.ceil(1001 / kind.codes_per_unit) * kind.codes_per_unit * kind.bits // 8
    assert torch.equal(unpack_codes(packed, kind, 1001), codes)


def test_packing_puts_the_first_code_lowest() -> None:
    assert pack_codes(torch.tensor([0x1, 0x2, 0x3]), FORMATS["int4"]).tolist() == [0x21, 0x03]
    word = 1 | 2 << 6 | 3 << 12 | 63 << 18
    assert pack_codes(torch.tensor([1, 2, 3, 63]), FORMATS["e2m3"]).tolist() == list(word.to_bytes(3, "little"))


@pytest.mark.parametrize("format", list(TORCH))
def test_eight_bit_floats_decode_as_torch_reads_them(format: str) -> None:
    ours = decode(torch.arange(256), FORMATS[format])
    theirs = torch.arange(256, dtype=torch.uint8).view(TORCH[format]).float()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


@pytest.mark.parametrize("format", list(TORCH))
def test_eight_bit_floats_are_torchs_casts_of_the_ratios(format: str) -> None:
    x = normal(8192) * 10.0 ** (torch.rand(8192, generator=torch.Generator().manual_seed(1)) * 8 - 7)
    got = ops.quantize(x, format, 64)
    ratios = x.view(-1, 64) / got.scales.unsqueeze(1)
    limit = FORMATS[format].largest
    assert torch.equal(
        got.q.view(TORCH[format]).float(), ratios.clamp(-limit, limit).view(-1).to(TORCH[format]).float()
    )


@pytest.mark.parametrize("format", FLOATS)
def test_every_finite_code_is_kept_and_ties_between_codes_go_to_the_even_one(format: str) -> None:
    kind = FORMATS[format]
    values = decode(torch.arange(kind.first_special), kind)
    assert values[-1] == kind.largest
    halves = (values[:-1] + values[1:]) / 2
    x = torch.cat([values, -values, halves])  # one group with the largest value in it, so the scale is 1
    got = ops.quantize(x, format, x.numel() + -x.numel() % 4)
    assert got.scales.tolist() == [1.0]
    again = back(got, format, x.numel() + -x.numel() % 4, x)
    count = values.numel()
    assert torch.equal(again[: 2 * count], x[: 2 * count])
    even = torch.arange(count - 1) + torch.arange(count - 1) % 2
    assert torch.equal(again[2 * count :], values[even])


@pytest.mark.parametrize("format", FLOATS)
def test_power_of_two_scales_are_the_exponent_of_the_largest_value(format: str) -> None:
    x = normal(4096) * torch.logspace(-6, 6, 128).repeat_interleave(32)
    got = ops.quantize(x, format, 32, scaling="power_of_two")
    amax = x.view(-1, 32).abs().amax(1).double()
    greatest = math.floor(math.log2(FORMATS[format].largest))
    assert torch.equal(got.scales.to(torch.int64) - 127, amax.log2().floor().to(torch.int64) - greatest)
    step = e8m0_to_float(got.scales).repeat_interleave(32)
    ratio = (x / step).abs()
    error = (back(got, format, 32, x) - x).abs() / step
    bits = FORMATS[format].mantissa_bits
    beyond = ratio > FORMATS[format].largest  # these saturate
    assert (error[~beyond] <= 2.0 ** (torch.frexp(ratio[~beyond]).exponent.clamp(min=1) - 2 - bits)).all()
    assert torch.equal(back(got, format, 32, x)[beyond].abs(), (step * FORMATS[format].largest)[beyond])


@pytest.mark.parametrize("format", INTEGERS)
def test_asymmetric_keeps_zero_exact_and_uses_the_whole_range(format: str) -> None:
    x = normal(4096).abs() + 0.5
    x[::64] = 0
    got = ops.quantize(x, format, 64, scaling="asymmetric")
    assert got.zeros is not None and got.zeros.dtype == torch.int8
    again = back(got, format, 64, x)
    step = got.scales.repeat_interleave(64)
    assert (again[::64] == 0).all()
    assert ((again - x).abs() <= 0.501 * step).all()
    symmetric = back(ops.quantize(x, format, 64), format, 64, x)
    assert (again - x).square().sum() < 0.5 * (symmetric - x).square().sum()


@pytest.mark.parametrize("format", list(FORMATS))
def test_stochastic_rounding_is_unbiased_and_takes_one_of_the_two_neighbours(format: str) -> None:
    x = torch.full((40_000,), 0.31)
    x[0] = 1.0
    exact = ops.quantize(x, format, 40_000)
    drawn = ops.quantize(x, format, 40_000, rounding_seed=11)
    assert torch.equal(drawn.scales, exact.scales)
    values = back(drawn, format, 40_000, x)[1:]
    low, high = values.min(), values.max()
    assert set(values.tolist()) == {low.item(), high.item()} and low < 0.31 < high
    assert abs(values.double().mean().item() - 0.31) < 4 * (high - low).item() / math.sqrt(40_000)
    assert torch.equal(ops.quantize(x, format, 40_000, rounding_seed=11).q, drawn.q)
    assert not torch.equal(ops.quantize(x, format, 40_000, rounding_seed=12).q, drawn.q)


def test_rounding_of_a_part_continues_the_sequence_of_the_whole() -> None:
    x = normal(4096)
    whole = ops.quantize(x, "int4", 64, rounding_seed=5)
    part = ops.quantize(x[1024:], "int4", 64, rounding_seed=5, rounding_offset=1024)
    assert torch.equal(part.q, whole.q[512:])


@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_group_with_a_value_that_is_not_finite_becomes_nan_and_others_do_not(format: str, bad: float) -> None:
    x = torch.tensor([1.0, bad, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0])
    for scaling in ("symmetric", "asymmetric" if format in INTEGERS else "power_of_two"):
        again = back(ops.quantize(x, format, 4, scaling=scaling), format, 4, x)
        assert again[:4].isnan().all() and torch.allclose(again[4:], x[4:], atol=0.5)


def test_int4_round_trips_in_any_shape() -> None:
    x = normal(91).view(13, 7)
    packed, scales = ops.quantize_int4(x, 16)
    assert packed.shape == (46,) and packed.dtype == torch.uint8 and scales.shape == (6,)
    again = ops.dequantize_int4(packed, scales, 16, x.shape, torch.bfloat16)
    assert again.shape == x.shape and again.dtype == torch.bfloat16
    step = scales.repeat_interleave(16)[:91].view(13, 7)
    assert ((again.float() - x).abs() <= 0.5 * step + x.abs() / 128).all()
