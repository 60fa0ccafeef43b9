"""Linear layers with weights of fp8, fp6 and fp4."""

from __future__ import annotations

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError

BITS = {"e4m3fn": 8, "e5m2": 8, "e3m2": 6, "e2m3": 6, "e2m1": 4}
TORCH = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("format", BITS)
@pytest.mark.parametrize("scaling", ["symmetric", "power_of_two"])
@pytest.mark.parametrize("group_size", [8, 64, 200, 1000])
def test_a_packed_weight_is_the_weight_quantized_row_by_row(format: str, scaling: str, group_size: int) -> None:
    weight = normal(37, 200)
    packed = ops.pack_weight(weight, format, group_size, scaling=scaling)
    assert (packed.format, packed.bits, packed.zeros) == (format, BITS[format], None)
    size = min(group_size, 200)
    for row in (0, 15, 16, 36):
        q, scales, _ = ops.quantize(weight[row], format, size, scaling=scaling)
        assert torch.equal(packed.dequantize()[row], ops.dequantize(q, scales, None, format, size, (200,)))


@pytest.mark.parametrize("format", BITS)
def test_a_weight_takes_its_bits(format: str) -> None:
    packed = ops.pack_weight(normal(32, 128), format, 128)
    assert packed.codes.numel() == 32 * 128 * BITS[format] // 8


@pytest.mark.parametrize("format", ["e4m3fn", "e5m2"])
def test_torch_s_own_floats_are_packed_as_they_are(format: str) -> None:
    weight = normal(20, 70).to(TORCH[format])
    scales = normal(20, 3).abs()
    packed = ops.pack_codes_by_outputs(weight.view(torch.uint8), scales, None, 8, 32, format=format)
    want = weight.double() * scales[:, torch.arange(70) // 32].double()
    assert torch.equal(packed.dequantize(torch.float64), want)


def test_six_bits_lie_where_the_header_says() -> None:
    q = torch.arange(64).repeat(16, 1).to(torch.uint8)  # input k has code k
    words = ops.pack_codes_by_outputs(q, torch.ones(16, 1), None, 6, 64, format="e3m2").codes.view(torch.int32)
    for unit in range(4):
        first, second, upper = (int(words.view(4, 3, 16)[unit, k, 5]) & 0xFFFFFFFF for k in range(3))
        for h, lower in enumerate((first, second)):
            for n in range(2):
                four = ((lower >> 4 * n) & 0x0F0F0F0F) | (((upper >> (4 * n + 2 * h)) & 0x03030303) << 4)
                base = 16 * unit + 8 * h + 4 * n
                assert list(four.to_bytes(4, "little")) == [base, base + 1, base + 2, base + 3]


@pytest.mark.parametrize("format", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weight_only_is_the_linear_layer_of_the_dequantized_weight(format: str, dtype: torch.dtype) -> None:
    packed = ops.pack_weight(normal(50, 150) / 17, format, 64)
    x, bias = normal(2, 5, 150, seed=1).to(dtype), normal(50, seed=2)
    got = ops.linear_weight_only(x, packed, bias)
    want = torch.nn.functional.linear(x.double(), packed.dequantize(torch.float64), bias.double())
    assert got.dtype == dtype and got.shape == (2, 5, 50)
    torch.testing.assert_close(got.double(), want.to(dtype).double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_gradients_flow_to_the_input_and_the_bias() -> None:
    packed = ops.pack_weight(normal(30, 64), "e2m3", 32)
    x, bias = normal(2, 5, 64, seed=1).requires_grad_(), torch.zeros(30, requires_grad=True)
    dy = normal(2, 5, 30, seed=2)
    ops.linear_weight_only(x, packed, bias).backward(dy)
    torch.testing.assert_close(x.grad, dy @ packed.dequantize())
    torch.testing.assert_close(bias.grad, dy.sum((0, 1)))


def test_integers_are_asked_for_by_bits_or_by_name() -> None:
    weight = normal(20, 64)
    for bits in (8, 4):
        want = ops.pack_weight(weight, f"int{bits}", 32)
        for packed in (ops.pack_weight(weight, bits, 32), ops.pack_weight(weight, bits=bits, group_size=32)):
            assert packed.format == want.format == "integer" and torch.equal(packed.codes, want.codes)


# torch 2.14's own check reads the gradients of the copies that it makes of its arguments.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_opcheck_and_compiling() -> None:
    packed = ops.pack_weight(normal(30, 64), "e4m3fn", 32)
    x = normal(5, 64).requires_grad_()
    arguments = (x, packed.codes, packed.scales, None, None, 8, 32, 30, "e4m3fn")
    torch.library.opcheck(torch.ops.ds.linear_weight_only.default, arguments)
    compiled = torch.compile(lambda x: ops.linear_weight_only(x, packed), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), ops.linear_weight_only(x, packed))


def test_arguments_that_do_not_fit_are_refused() -> None:
    weight = normal(30, 64)
    packed = ops.pack_weight(weight, "e3m2", 32)
    with pytest.raises(OpError, match=r"format must be one of .*, got 'e4m3'.*e4m3fn"):
        ops.pack_weight(weight, "e4m3", 32)
    with pytest.raises(OpError, match="scaling of e3m2 must be symmetric or power_of_two, got 'asymmetric'"):
        ops.pack_weight(weight, "e3m2", 32, scaling="asymmetric")
    with pytest.raises(OpError, match="linear_w8a8: weight must hold integers, got e3m2"):
        ops.linear_w8a8(normal(5, 64), packed)
    with pytest.raises(OpError, match="bits of e3m2 must be 6, got 8"):
        torch.ops.ds.linear_weight_only(normal(5, 64), packed.codes, packed.scales, None, None, 8, 32, 30, "e3m2")
    with pytest.raises(OpError, match="zeros must be None for e3m2; only integers have zero points"):
        zeros = packed.scales.to(torch.int8)
        torch.ops.ds.linear_weight_only(normal(5, 64), packed.codes, packed.scales, zeros, None, 6, 32, 30, "e3m2")
    with pytest.raises(OpError, match="q of 6 bits must be from 0 to 63, got 0 to 64"):
        q = torch.tensor([[64, 0]], dtype=torch.uint8)
        ops.pack_codes_by_outputs(q, torch.ones(1, 1), None, 6, 2, format="e2m3")
