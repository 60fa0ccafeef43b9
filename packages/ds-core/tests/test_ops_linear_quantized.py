from __future__ import annotations

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError

SCALINGS = ("symmetric", "asymmetric")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("group_size", [8, 64, 200, 1000])
def test_a_packed_weight_is_the_weight_quantized_row_by_row(bits: int, scaling: str, group_size: int) -> None:
    weight = normal(37, 200)
    packed = ops.pack_weight(weight, bits, group_size, scaling=scaling)
    assert (packed.out_features, packed.in_features, packed.zeros is None) == (37, 200, scaling == "symmetric")
    size = min(group_size, 200)
    for row in (0, 15, 16, 36):
        q, scales, zeros = ops.quantize(weight[row], f"int{bits}", size, scaling=scaling)
        again = ops.dequantize(q, scales, zeros, f"int{bits}", size, (200,))
        assert torch.equal(packed.dequantize()[row], again)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_from_elsewhere_survive_packing(bits: int) -> None:
    half = 2 ** (bits - 1)
    q = torch.randint(-half, half, (50, 77), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scales = normal(50, 3).abs() + 0.1
    zeros = torch.randint(-8, 8, (50, 3), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    packed = ops.pack_codes_by_outputs(q, scales, zeros, bits, 32)
    by_input = torch.arange(77) // 32
    want = (q.double() - zeros[:, by_input]) * scales[:, by_input].double()
    assert torch.equal(packed.dequantize(torch.float64), want)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weight_only_is_the_linear_layer_of_the_dequantized_weight(bits: int, dtype: torch.dtype) -> None:
    packed = ops.pack_weight(normal(100, 300) / 17, bits, 64)
    x, bias = normal(2, 5, 300, seed=1).to(dtype), normal(100, seed=2)
    got = ops.linear_weight_only(x, packed, bias)
    want = torch.nn.functional.linear(x.double(), packed.dequantize(torch.float64), bias.double())
    assert got.dtype == dtype and got.shape == (2, 5, 100)
    torch.testing.assert_close(got.double(), want.to(dtype).double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("op", ["linear_weight_only", "linear_w8a8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_does_not_depend_on_the_rows_beside_it(op: str, dtype: torch.dtype, bits: int) -> None:
    packed = ops.pack_weight(normal(80, 320), bits, 64, scaling="asymmetric")
    x = normal(260, 320, seed=1).to(dtype)
    linear = getattr(ops, op)
    whole = linear(x, packed)
    # A matrix unit rounds float32 sums of bfloat16 products otherwise than what runs a few rows.
    tolerance = torch.finfo(dtype).eps if (op, dtype) == ("linear_weight_only", torch.bfloat16) else 0.0
    for first, count in ((0, 1), (3, 4), (100, 7), (240, 20), (50, 16)):
        part = linear(x[first : first + count], packed)
        torch.testing.assert_close(part, whole[first : first + count], rtol=tolerance, atol=tolerance)


def test_integer_products_are_exact() -> None:
    q = torch.tensor([[127, -127, 1], [0, 5, -128]], dtype=torch.int8)
    packed = ops.pack_codes_by_outputs(q, torch.ones(2, 1), None, 8, 3)
    x = torch.tensor([[127.0, -3.0, 5.0], [0.0, 0.0, 0.0]])  # the scale of the first row is 1
    assert ops.linear_w8a8(x, packed).tolist() == [[127 * 127 + 3 * 127 + 5, -15 - 5 * 128], [0, 0]]


def test_dynamic_quantization_is_off_by_the_step_of_each_row() -> None:
    packed = ops.pack_weight(normal(64, 256), 8, 256)
    x = normal(9, 256, seed=1) * torch.logspace(-4, 4, 9).unsqueeze(1)
    exact = ops.linear_weight_only(x, packed)
    error = (ops.linear_w8a8(x, packed) - exact).abs().amax(1)
    bound = x.abs().amax(1) / 254 * packed.dequantize().abs().sum(1).max()
    assert (error <= bound).all() and (error > 0).all()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_row_that_is_not_finite_gives_nan_and_others_do_not(bad: float) -> None:
    packed = ops.pack_weight(normal(20, 64), 4, 32)
    x = normal(3, 64, seed=1)
    x[1, 5] = bad
    y = ops.linear_w8a8(x, packed)
    assert y[1].isnan().all() and y[0].isfinite().all() and y[2].isfinite().all()


def test_gradients_flow_to_the_input_and_the_bias() -> None:
    packed = ops.pack_weight(normal(30, 64), 4, 32)
    x, bias = normal(2, 5, 64, seed=1).requires_grad_(), torch.zeros(30, requires_grad=True)
    dy = normal(2, 5, 30, seed=2)
    ops.linear_weight_only(x, packed, bias).backward(dy)
    torch.testing.assert_close(x.grad, dy @ packed.dequantize())
    torch.testing.assert_close(bias.grad, dy.sum((0, 1)))
    assert not ops.linear_w8a8(x, packed, bias).requires_grad


# torch 2.14's own check reads the gradients of the copies that it makes of its arguments.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.parametrize("name", ["linear_weight_only", "linear_w8a8"])
def test_opcheck(name: str) -> None:
    packed = ops.pack_weight(normal(30, 64), 4, 32)
    x = normal(5, 64).requires_grad_(name == "linear_weight_only")
    arguments = (x, packed.codes, packed.scales, None, None, 4, 32, 30)
    torch.library.opcheck(getattr(torch.ops.ds, name).default, arguments)


def test_compiled_as_one_graph() -> None:
    packed = ops.pack_weight(normal(30, 64), 4, 32)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return ops.linear_weight_only(x, packed).relu()

    x = normal(5, 64)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_arguments_that_do_not_fit_are_refused() -> None:
    packed = ops.pack_weight(normal(30, 64), 4, 32)
    with pytest.raises(OpError, match=r"x must have 64 in its last dimension .*, got shape \(5, 63\)"):
        ops.linear_weight_only(normal(5, 63), packed)
    with pytest.raises(OpError, match=r"codes must have shape \(2, 1024\) .*, got \(2, 512\)"):
        torch.ops.ds.linear_w8a8(normal(5, 64), packed.codes, packed.scales, None, None, 8, 32, 30)
    with pytest.raises(OpError, match=r"scales must have shape \(4, 32\) .*, got \(2, 32\)"):
        torch.ops.ds.linear_w8a8(normal(5, 64), packed.codes, packed.scales, None, None, 4, 16, 30)
    with pytest.raises(OpError, match=r"bias must have shape \(30,\)"):
        ops.linear_w8a8(normal(5, 64), packed, normal(31))
    with pytest.raises(OpError, match=r"group_size must be a multiple of 8, or at least in_features \(64\), got 12"):
        ops.pack_weight(normal(30, 64), 4, 12)
    with pytest.raises(OpError, match="bits must be 8 or 4, got 6"):
        ops.pack_weight(normal(30, 64), 6)
    with pytest.raises(OpError, match=r"weight must be \[out_features, in_features\]"):
        ops.pack_weight(normal(30), 4)
    with pytest.raises(OpError, match="q of 4 bits must be from -8 to 7, got -9 to 0"):
        q = torch.tensor([[-9, 0]], dtype=torch.int8)
        ops.pack_codes_by_outputs(q, torch.ones(1, 1), None, 4, 2)
