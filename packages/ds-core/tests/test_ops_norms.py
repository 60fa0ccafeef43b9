from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from ds_core import ops
from ds_core.errors import OpError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def leaves(shape: tuple[int, ...], dtype: torch.dtype, weight: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    w, b = (torch.randn(shape[-1:], generator=generator).to(weight) for _ in range(2))
    return [t.requires_grad_() for t in (x, w, b)]


def gradients(y: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return torch.autograd.grad(y, inputs, dy.to(y.dtype))


def wide(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().double().requires_grad_() for t in inputs]


def rms(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, w.shape, w, 1e-6) + 0 * b.sum()


def ours_rms(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ops.rms_norm(x, w, 1e-6) + 0 * b.sum()


def layer(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, w.shape, w, b, 1e-5)


def ours_layer(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ops.layer_norm(x, w, b, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ours", "theirs"), [(ours_rms, rms), (ours_layer, layer)])
def test_values_and_gradients_are_torchs_in_double_precision(
    dtype: torch.dtype, ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor]
) -> None:
    inputs = leaves((6, 5, 37), dtype)
    exact = wide(inputs)
    y, want = ours(*inputs), theirs(*exact)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.autograd.grad(y, inputs, dy.to(y.dtype))
    expected = torch.autograd.grad(want, exact, dy.double())
    for got, right, leaf in zip(found, expected, inputs, strict=True):
        assert got.dtype == leaf.dtype and got.shape == leaf.shape
        torch.testing.assert_close(got.double(), right, rtol=tolerance * 4, atol=tolerance * 10)


@pytest.mark.parametrize("ours", [ours_rms, ours_layer])
def test_gradcheck(ours: Callable[..., torch.Tensor]) -> None:
    inputs = leaves((3, 7), torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input #.* requires gradient and is not a double precision")
        assert torch.autograd.gradcheck(ours, inputs, eps=2e-2, atol=2e-2, rtol=1e-2, nondet_tol=0.0)


def test_layer_norm_without_bias() -> None:
    x, w, _ = leaves((4, 9), torch.float32)
    y = ops.layer_norm(x, w)
    torch.testing.assert_close(y, functional.layer_norm(x, w.shape, w))
    assert [g.shape for g in gradients(y, [x, w])] == [x.shape, w.shape]


@pytest.mark.parametrize("ours", [ours_rms, ours_layer])
def test_without_grad_there_is_no_graph(ours: Callable[..., torch.Tensor]) -> None:
    inputs = leaves((4, 9), torch.float32)
    with torch.no_grad():
        quiet = ours(*inputs)
    assert not quiet.requires_grad
    assert torch.equal(quiet, ours(*inputs).detach())


@pytest.mark.parametrize("ours", [ours_rms, ours_layer])
def test_strides_do_not_matter(ours: Callable[..., torch.Tensor]) -> None:
    x, w, b = leaves((8, 16), torch.float32)
    turned = x.detach().t().contiguous().t().requires_grad_()
    assert torch.equal(ours(x, w, b), ours(turned, w, b))
    y = ours(turned, w, b)
    strided_dy = torch.randn(16, 8).t()
    (expected,) = torch.autograd.grad(ours(x, w, b), [x], strided_dy.contiguous())
    (found,) = torch.autograd.grad(y, [turned], strided_dy)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("ours", [ours_rms, ours_layer])
def test_compiled_as_one_graph(ours: Callable[..., torch.Tensor]) -> None:
    inputs = leaves((4, 9), torch.float32)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    y, want = compiled(*inputs), ours(*inputs)
    assert torch.equal(y, want)
    for got, right in zip(gradients(y, inputs), gradients(want, inputs), strict=True):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: ops.rms_norm(x, torch.ones(5)),
            r"weight must have shape \(6,\) \(the last dimension of x\), got \(5,\)",
        ),
        (lambda x: ops.rms_norm(x.double(), torch.ones(6)), "x must be float32, bfloat16, float16, got float64"),
        (lambda x: ops.rms_norm(torch.tensor(1.0), torch.ones(1)), r"at least one dimension .* got \(\)"),
        (lambda x: ops.layer_norm(torch.zeros(3, 0), torch.ones(0)), r"a last one that is not empty, got \(3, 0\)"),
        (
            lambda x: ops.layer_norm(x, torch.ones(6), torch.ones(6).half()),
            "bias must be float32 like weight, got float16",
        ),
        (
            lambda x: ops.rms_norm_backward(x.half(), x, torch.ones(6), torch.ones(2)),
            "dy must be float32 like x, got float16",
        ),
        (
            lambda x: ops.layer_norm_backward(x, x, torch.ones(6), torch.ones(2), torch.ones(3)),
            r"rstd must have shape \(2,\) \(one value a row of x\), got \(3,\)",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[[torch.Tensor], Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        call(torch.zeros(2, 6))


def added_rms(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    y, total = ops.add_rms_norm(x, x.flip(0).detach(), w, 1e-6)
    return y + 0.3 * total + 0 * b.sum()


def added_layer(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    y, total = ops.add_layer_norm(x, x.flip(0).detach(), w, b, 1e-5)
    return y + 0.3 * total


@pytest.mark.parametrize(("ours", "theirs"), [(added_rms, rms), (added_layer, layer)])
def test_a_residual_added_first(ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor]) -> None:
    inputs = leaves((6, 5, 37), torch.float32)
    exact = wide(inputs)
    total = exact[0] + exact[0].flip(0).detach()
    y, want = ours(*inputs), theirs(total, *exact[1:]) + 0.3 * total
    torch.testing.assert_close(y.double(), want, rtol=3e-6, atol=3e-6)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    for got, right in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(want, exact, dy.double()), strict=True
    ):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_with_a_residual_is_the_rounded_one_and_what_is_normalized(dtype: torch.dtype) -> None:
    x, w, b = leaves((4, 33), dtype)
    residual = torch.randn(4, 33).to(dtype)
    y, total = ops.add_rms_norm(x, residual, w)
    assert torch.equal(total, x + residual) and torch.equal(y, ops.rms_norm(x + residual, w))
    z, total = ops.add_layer_norm(x, residual, w, b)
    assert torch.equal(total, x + residual) and torch.equal(z, ops.layer_norm(x + residual, w, b))


def test_a_residual_and_its_sum_get_equal_gradients_also_when_only_the_sum_is_used() -> None:
    x, w, _ = leaves((4, 9), torch.float32)
    residual = torch.randn(4, 9, requires_grad=True)
    y, total = ops.add_rms_norm(x, residual, w)
    first, second = torch.autograd.grad((y * y).sum() + total.sum(), [x, residual], retain_graph=True)
    assert torch.equal(first, second)
    first, second = torch.autograd.grad(total.sum(), [x, residual])
    assert torch.equal(first, torch.ones(4, 9)) and torch.equal(second, torch.ones(4, 9))
