"""cross_entropy and linear_cross_entropy against torch's, and the memory of the tiled one by counting allocations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ds_core import ops
from ds_core.errors import OpError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def logits_and_target(
    *shape: int, dtype: torch.dtype = torch.float32, ignored: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 3).to(dtype).requires_grad_()
    target = torch.randint(0, shape[-1], shape[:-1], generator=generator)
    if ignored:
        target.view(-1)[1::4] = -100
    return x, target


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_torchs_in_double_precision(dtype: torch.dtype, reduction: str, smoothing: float) -> None:
    x, target = logits_and_target(20, 1500, dtype=dtype)
    exact = x.detach().double().requires_grad_()
    loss = ops.cross_entropy(x, target, reduction=reduction, label_smoothing=smoothing)
    want = functional.cross_entropy(exact, target, reduction=reduction, label_smoothing=smoothing)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=2e-6)
    weights = torch.rand(loss.shape) + 0.5
    (got,) = torch.autograd.grad(loss, [x], weights)
    (right,) = torch.autograd.grad(want, [exact], weights.double())
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 0.1)


def test_z_loss_is_the_square_of_the_log_of_the_sum() -> None:
    x, target = logits_and_target(6, 50)
    exact = x.detach().double().requires_grad_()
    loss = ops.cross_entropy(x, target, z_loss=0.01, reduction="sum")
    kept = target != -100
    want = functional.cross_entropy(exact, target, reduction="sum") + 0.01 * exact.logsumexp(-1)[kept].square().sum()
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(loss, [x])[0].double(), torch.autograd.grad(want, [exact])[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_overwriting_gives_the_same_gradient_in_the_memory_of_the_logits(reduction: str) -> None:
    base, target = logits_and_target(9, 300)
    want = ops.cross_entropy(base, target, reduction=reduction, label_smoothing=0.1)
    (expected,) = torch.autograd.grad(want * 3, [base])
    logits = base * 1  # not a leaf, as the output of a layer
    place = logits.data_ptr()
    loss = ops.cross_entropy(logits, target, reduction=reduction, label_smoothing=0.1, overwrite=True)
    assert torch.equal(loss, want)
    (dlogits,) = torch.autograd.grad(loss * 3, [logits])
    assert dlogits.data_ptr() == place
    torch.testing.assert_close(dlogits, expected, rtol=2e-6, atol=1e-7)


def test_padded_classes_of_minus_infinity_do_no_harm() -> None:
    x, target = logits_and_target(4, 3000, ignored=False)
    padded = torch.cat((torch.full((4, 1100), -torch.inf), x.detach()), -1).requires_grad_()
    loss = ops.cross_entropy(padded, target + 1100)
    torch.testing.assert_close(loss, functional.cross_entropy(x, target), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, [padded])
    assert (gradient[:, :1100] == 0).all() and gradient.isfinite().all()


def test_ignored_rows_are_not_read() -> None:
    x = torch.full((3, 7), torch.nan)
    x[1] = 0.0
    target = torch.tensor([-100, 2, -100])
    torch.testing.assert_close(ops.cross_entropy(x, target), torch.tensor(7.0).log())
    assert ops.cross_entropy(x, torch.full((3,), -100), reduction="sum") == 0
    assert ops.cross_entropy(x, torch.full((3,), -100)).isnan()


@pytest.mark.parametrize("bad", [7, -1, 2**33])
def test_a_class_that_is_not_there_is_named_and_nothing_is_written(bad: int) -> None:
    x = torch.zeros(3, 7)
    target = torch.tensor([6, bad, 0])
    message = rf"target\[1\] is {bad}; allowed: 0 to 6, or -100 \(ignore_index\)"
    with pytest.raises(OpError, match=message):
        ops.cross_entropy(x, target)
    with pytest.raises(OpError, match=message):
        ops.cross_entropy_(x, target)
    with pytest.raises(OpError, match=message):
        ops.linear_cross_entropy(torch.zeros(3, 2), torch.zeros(7, 2), target)
    assert (x == 0).all()


def linear_inputs(
    tokens: int, dim: int, classes: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, dim, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(classes, dim, generator=generator) * 0.3).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (tokens,), generator=generator)
    target[3::7] = -100
    return hidden, weight, target


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [1, 16, 37, 1000])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_by_tiles_it_is_torchs_linear_and_cross_entropy(dtype: torch.dtype, tile: int, reduction: str) -> None:
    hidden, weight, target = linear_inputs(50, 24, 311, dtype)
    loss = ops.linear_cross_entropy(hidden, weight, target, reduction=reduction, tile_tokens=tile)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    want = functional.cross_entropy(functional.linear(*exact), target, reduction=reduction)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(loss.double(), want, rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(loss * 2, [hidden, weight])
    for got, right, given in zip(found, torch.autograd.grad(want * 2, exact), (hidden, weight), strict=True):
        assert got.dtype == dtype and got.shape == given.shape
        largest = right.abs().max().item()
        torch.testing.assert_close(got.double(), right, rtol=tolerance, atol=4 * tolerance * largest)


def test_only_what_is_wanted_is_differentiated() -> None:
    hidden, weight, target = linear_inputs(20, 8, 30)
    both = torch.autograd.grad(ops.linear_cross_entropy(hidden, weight, target, tile_tokens=7), [hidden, weight])
    alone = ops.linear_cross_entropy(hidden, weight.detach(), target, tile_tokens=7)
    assert torch.equal(torch.autograd.grad(alone, [hidden])[0], both[0])
    alone = ops.linear_cross_entropy(hidden.detach(), weight, target, tile_tokens=7)
    assert torch.equal(torch.autograd.grad(alone, [weight])[0], both[1])
    with torch.no_grad():
        quiet = ops.linear_cross_entropy(hidden, weight, target, tile_tokens=7)
    torch.testing.assert_close(quiet, alone.detach())


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made while it is on, by when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[Any, int]] = {}
        self.peak: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in args if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in known:
                storage = t.untyped_storage()
                self.live[storage._cdata] = (torch.multiprocessing.reductions.StorageWeakRef(storage), storage.nbytes())
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_the_tile_and_the_gradients(dtype: torch.dtype) -> None:
    tokens, dim, classes, tile = 512, 16, 4000, 32
    hidden, weight, target = linear_inputs(tokens, dim, classes, dtype)
    size = hidden.element_size()
    with LiveBytes() as memory:
        ops.linear_cross_entropy(hidden, weight, target, tile_tokens=tile).backward()
    gradients = (tokens * dim + classes * dim) * size
    wide = 0 if dtype == torch.float32 else classes * dim * 4  # the sum of the weight's gradient in float32
    small = 64 * tokens  # losses, and what checks the class numbers
    assert memory.peak <= tile * classes * size + gradients + wide + small
    assert memory.peak < tokens * classes * size / 4
    with LiveBytes() as whole:
        functional.cross_entropy(functional.linear(hidden, weight), target).backward()
    assert whole.peak >= tokens * classes * size  # so the count sees what it should


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: ops.cross_entropy(x, t[:2]), r"target must have shape \(3,\) \(the rows of logits\), got \(2,\)"),
        (lambda x, t: ops.cross_entropy(x, t.int()), "target must be int64, got int32"),
        (lambda x, t: ops.cross_entropy(x, t, reduction="avg"), "reduction must be mean, sum, none, got 'avg'"),
        (lambda x, t: ops.cross_entropy(x, t, reduction="none", overwrite=True), "reduction must be mean, sum, got"),
        (lambda x, t: ops.cross_entropy(x, t, label_smoothing=1.5), "label_smoothing must be 0 to 1, got 1.5"),
        (lambda x, t: ops.cross_entropy_(x.t().contiguous().t(), t), "logits must be dense to be written over"),
        (lambda x, t: ops.linear_cross_entropy(x, x[:, :4], t), r"weight must have shape \(3, 5\)"),
        (lambda x, t: ops.linear_cross_entropy(x, x.half(), t), "weight must be float32 like hidden, got float16"),
        (lambda x, t: ops.linear_cross_entropy(x, x, t, tile_tokens=0), "tile_tokens must be 1 or more, got 0"),
        (lambda x, t: ops.linear_cross_entropy(x, x, t, reduction="none"), "reduction must be mean, sum, got 'none'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        call(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
