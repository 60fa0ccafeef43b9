"""Emulated linear layers where conformance cases do not reach: rows beside rows, every code, odd groups, addresses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ds_accel_cuda.libraries import emulated
from ds_core import ops
from ds_core.ops._formats import FORMATS, decode
from ds_core.ops._packed_weight import PackedWeight, pack_codes_by_outputs
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.case import Exactness
from ds_core.ops.table import op
from ds_core.testing import op_cases

KERNELS = KernelOps(emulated(), HostLauncher())
INTEGERS = ("int8", "int4")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arguments(name: str, x: torch.Tensor, w: PackedWeight, bias: torch.Tensor | None = None) -> tuple[Any, ...]:
    more = (w.format,) if name == "linear_weight_only" else ()
    return (x, w.codes, w.scales, w.zeros, bias, w.bits, w.group_size, w.out_features, *more)


def linear(name: str, x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The kernel's result."""
    y: torch.Tensor = getattr(KERNELS, name)(*arguments(name, x, weight, bias))
    return y


def reference(name: str, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    y: torch.Tensor = op(name).definition().reference(*arguments(name, x, weight))
    return y


@pytest.mark.parametrize("format", (*INTEGERS, "e4m3fn", "e3m2"))
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(format: str) -> None:
    weight = ops.pack_weight(random(21, 424, seed=1), format, 56)
    for name in ("linear_weight_only", "linear_w8a8") if format in INTEGERS else ("linear_weight_only",):
        x = random(70, 424)
        whole = linear(name, x, weight)
        for rows in (*range(1, 34), 69):
            first = 70 - rows
            assert torch.equal(linear(name, x[first:], weight), whole[first:]), f"{name}, {rows} rows"


def test_a_row_has_the_same_bits_beside_a_row_that_is_not_finite() -> None:
    weight = ops.pack_weight(random(32, 200, seed=1), "int4", 64)
    x = random(40, 200)
    spoilt = x.clone()
    spoilt[7, 3] = float("nan")
    for name in ("linear_weight_only", "linear_w8a8"):
        clean, found = linear(name, x, weight), linear(name, spoilt, weight)
        assert found[7].isnan().all()
        found[7] = clean[7]
        assert torch.equal(found, clean), name


@pytest.mark.parametrize("rows", (8, 40))
@pytest.mark.parametrize("format", FORMATS)
def test_every_code_is_read_as_its_value(format: str, rows: int) -> None:
    kind = FORMATS[format]
    codes = torch.arange(2**kind.bits)
    codes = codes[decode(codes, kind).isfinite()]
    q = codes.roll(1).repeat(17, 2)[:, : 2 * codes.numel() - 3]  # not whole words at the end
    q = torch.stack([row.roll(output) for output, row in enumerate(q)])
    values = decode(q, kind)
    stored = values.to(torch.int8) if kind.is_integer else q.to(torch.uint8)
    weight = pack_codes_by_outputs(
        stored, torch.full((17, 1), 0.5), None, kind.bits, q.shape[1], format="integer" if kind.is_integer else format
    )
    for first in range(0, q.shape[1], rows):  # rows that pick one input each
        x = torch.eye(q.shape[1])[first : first + rows]
        assert torch.equal(linear("linear_weight_only", x, weight), 0.5 * values.t()[first : first + rows])


@pytest.mark.parametrize("group_size", (8, 40, 136, 264, 1000))
@pytest.mark.parametrize("rows", (2, 50))
@pytest.mark.parametrize("format", INTEGERS)
def test_groups_that_do_not_fit_tiles_and_chunks(format: str, rows: int, group_size: int) -> None:
    weight = ops.pack_weight(random(37, 541, seed=2), format, group_size, scaling="asymmetric")
    x = random(rows, 541, seed=3)
    for name, bound in (("linear_weight_only", Exactness(1, 2e-6)), ("linear_w8a8", Exactness())):
        op_cases.compare(linear(name, x, weight), reference(name, x, weight), bound, f"{name} {format} {group_size}")


@pytest.mark.parametrize("offset", (1, 2, 3))
@pytest.mark.parametrize("format", (*INTEGERS, "e2m3"))
def test_codes_and_rows_at_any_address(format: str, offset: int) -> None:
    weight = ops.pack_weight(random(24, 131, seed=4), format, 64)
    moved = torch.empty(weight.codes.numel() + offset, dtype=torch.uint8)[offset:].view(weight.codes.shape)
    moved.copy_(weight.codes)
    for rows in (2, 12):
        x = random(rows, 131)
        shifted = torch.empty(x.numel() + offset)[offset:].view(x.shape).copy_(x)
        for name in ("linear_weight_only", "linear_w8a8") if format in INTEGERS else ("linear_weight_only",):
            assert torch.equal(linear(name, shifted, replace(weight, codes=moved)), linear(name, x, weight))


def test_more_rows_than_are_quantized_at_once() -> None:
    weight = ops.pack_weight(random(5, 16, seed=5), "int8", 16)
    x = random(4099, 16)
    found = linear("linear_w8a8", x, weight, random(5))
    assert torch.equal(found[4090:], linear("linear_w8a8", x[4090:], weight, random(5)))
    assert torch.equal(found[:40], linear("linear_w8a8", x[:40], weight, random(5)))


def test_a_float_format_does_not_go_with_other_bits_or_zero_points() -> None:
    codes, scales = torch.zeros(1, 64 * 16, dtype=torch.uint8), torch.ones(1, 16)
    x = random(1, 64)
    with pytest.raises(RuntimeError, match="linear_weight_only"):
        KERNELS.linear_weight_only(x, codes, scales, None, None, 8, 64, 16, "e2m1")
    with pytest.raises(RuntimeError, match="linear_weight_only"):
        KERNELS.linear_weight_only(x, codes, scales, torch.zeros(1, 16, dtype=torch.int8), None, 8, 64, 16, "e4m3fn")
