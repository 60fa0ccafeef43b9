"""Emulated quantization where conformance cases do not reach: every code, odd groups, long groups, odd addresses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_accel_cuda.libraries import emulated, emulated_path
from ds_core.ops._formats import FORMATS, decode, pack_codes
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.case import Exactness
from ds_core.ops.table import op
from ds_core.testing import op_cases
from ds_core.testing.emulation import ORDERS, Emulation

KERNELS = KernelOps(emulated(), HostLauncher())
EMULATION = Emulation(emulated_path())
EXACT = Exactness()
UNITS = {8: 1, 6: 4, 4: 2}


def random(numel: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(numel)
    spread = 10.0 ** (torch.rand(numel, generator=generator) * 4 - 2)
    return (torch.randn(numel, generator=generator) * spread).to(dtype)


def check_quantize(x: torch.Tensor, *scalars: Any) -> None:
    """The kernel's codes, scales and zero points are the reference's."""
    found = KERNELS.quantize(x, *scalars)
    wanted = op("quantize").definition().reference(x, *scalars)
    for name, got, want in zip(("codes", "scales", "zeros"), found, wanted, strict=True):
        op_cases.compare(got, want, EXACT, f"{name} of {scalars}")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", FORMATS)
def test_every_code_has_its_value(name: str, dtype: torch.dtype) -> None:
    format = FORMATS[name]
    codes = torch.arange(2**format.bits)
    wanted = decode(codes, format)
    packed = pack_codes(codes, format).view(format.dtype)
    scales = torch.ones(1)
    found = KERNELS.dequantize(packed, scales, None, name, codes.numel(), (codes.numel(),), dtype)
    op_cases.compare(found, wanted.to(dtype), EXACT, name)
    numbers = ~wanted.isnan()
    assert torch.equal(found[numbers].signbit(), wanted[numbers].signbit())  # zeros of either sign compare as equal


@pytest.mark.parametrize("name", [name for name in FORMATS if not FORMATS[name].is_integer])
def test_every_finite_code_comes_back(name: str) -> None:
    format = FORMATS[name]
    codes = torch.arange(2**format.bits)
    codes = codes[decode(codes, format).isfinite()]
    codes = codes[: codes.numel() // 4 * 4]
    codes[-1] = format.first_special - 1  # the largest, so that the scale is 1
    found, scales, _ = KERNELS.quantize(decode(codes, format), name, codes.numel())
    assert scales.tolist() == [1.0]
    assert torch.equal(found.view(torch.uint8).view(-1), pack_codes(codes, format))


@pytest.mark.parametrize("factor", (1, 3, 5, 7, 33, 260, 1001, 1025))
@pytest.mark.parametrize("name", ("int8", "int4", "e4m3fn", "e3m2", "e2m1"))
def test_groups_that_are_no_multiple_of_what_a_thread_takes(name: str, factor: int) -> None:
    unit = UNITS[FORMATS[name].bits]
    numel = min(3 * unit * factor + 5, 2003)
    check_quantize(random(numel), name, unit * factor)
    q, scales, _ = KERNELS.quantize(random(numel), name, unit * factor)
    arguments = (q, scales, None, name, unit * factor, (numel,), torch.float16)
    op_cases.compare(
        KERNELS.dequantize(*arguments), op("dequantize").definition().reference(*arguments), EXACT, f"{name} {factor}"
    )


@pytest.mark.parametrize(
    ("name", "group_size", "scaling", "seed"),
    (
        ("int8", 20_000, "asymmetric", -1),
        ("int4", 16_386, "symmetric", 5),
        ("e4m3fn", 100_000, "power_of_two", -1),
        ("e3m2", 17_000, "symmetric", 7),
    ),
)
def test_groups_longer_than_a_block_takes(name: str, group_size: int, scaling: str, seed: int) -> None:
    for order in ORDERS:
        with EMULATION.order(order):
            check_quantize(random(41_003, torch.bfloat16), name, group_size, scaling, seed, 11)


def test_a_value_that_is_not_finite_spoils_its_long_group_alone() -> None:
    x = random(50_000)
    x[30_000] = float("inf")
    check_quantize(x, "int8", 20_000)
    q, scales, _ = KERNELS.quantize(x, "int8", 20_000)
    assert scales.isfinite().tolist() == [True, False, True]
    assert not q[20_000:40_000].any()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("offset", range(1, 8))
def test_elements_and_codes_at_any_address(offset: int, dtype: torch.dtype) -> None:
    x = random(700, dtype)[offset:]
    check_quantize(x, "int8", 96)
    q, scales, _ = KERNELS.quantize(x, "e2m3", 96)
    moved = torch.empty(q.numel() + offset, dtype=torch.uint8)[offset:].copy_(q)
    same = [KERNELS.dequantize(codes, scales, None, "e2m3", 96, x.shape, dtype) for codes in (q, moved)]
    assert torch.equal(*same)
