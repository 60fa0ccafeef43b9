"""adagrad_, lion_ and sgd_: the references against torch.optim and against the formulas in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError
from ds_core.ops import table

NUMEL = 64 * 100
WITH_FMA = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch rounds without fma"
)


def reference(name: str) -> Any:
    return table.op(name).definition().reference


def random(seed: int, numel: int = NUMEL) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


@WITH_FMA
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True},
    ],
)
def test_sgd_is_bit_equal_to_torchs(options: dict[str, Any], fused: bool) -> None:
    p, theirs = random(0), torch.nn.Parameter(random(0))
    buffer = torch.full((NUMEL,), float("nan")) if "momentum" in options else None
    optimizer = torch.optim.SGD([theirs], lr=1e-2, fused=fused, **options)
    for step in range(5):
        g = random(step + 1)
        theirs.grad = g.clone()
        optimizer.step()
        reference("sgd_")(p, g, buffer, lr=1e-2, is_first=step == 0, **options)
        assert torch.equal(p, theirs.detach())


@WITH_FMA
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"lr_decay": 0.01}])
def test_adagrad_is_bit_equal_to_torchs_but_for_the_square_root(options: dict[str, Any]) -> None:
    p, total, theirs = random(0), torch.zeros(NUMEL), torch.nn.Parameter(random(0))
    optimizer = torch.optim.Adagrad([theirs], lr=1e-2, **options)
    for step in range(1, 6):
        g = random(step)
        theirs.data.copy_(p)  # one unit of the root would else reach the sum through the decay
        theirs.grad = g.clone()
        optimizer.step()
        reference("adagrad_")(p, g, total, lr=1e-2, eps=1e-10, step=step, **{"weight_decay": 0.0, **options})
        assert torch.equal(total, optimizer.state[theirs]["sum"])
        torch.testing.assert_close(p, theirs.detach(), rtol=0, atol=2.4e-7)  # an ulp at 4
        assert (p != theirs.detach()).float().mean() < 0.02


def test_adagrad_is_the_formula_in_double_precision() -> None:
    p, g, s = random(0), random(1), random(2).square()
    total = s.double() + g.double() ** 2
    want = p.double() - 1e-2 * g.double() / (total.sqrt() + 1e-10)
    reference("adagrad_")(p, g, s, lr=1e-2, eps=1e-10, weight_decay=0.0, step=1)
    torch.testing.assert_close(p.double(), want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(s.double(), total, rtol=1e-6, atol=0)


def test_lion_is_the_formula_in_double_precision() -> None:
    p, g, m = random(0), random(1), random(2)
    sign = torch.sign(0.9 * m.double() + 0.1 * g.double())
    want = p.double() * (1 - 1e-3 * 0.1) - 1e-3 * sign
    moment = 0.99 * m.double() + 0.01 * g.double()
    reference("lion_")(p, g, m, lr=1e-3, beta1=0.9, beta2=0.99, weight_decay=0.1)
    torch.testing.assert_close(p.double(), want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(m.double(), moment, rtol=1e-5, atol=1e-7)


def test_without_momentum_and_decay_lion_moves_every_element_by_the_rate() -> None:
    p, g = random(0), random(1)
    moved = p.clone()
    ops.lion_(moved, g, torch.zeros(NUMEL), lr=0.5, beta1=0.0, beta2=0.0, weight_decay=0.0)
    assert torch.equal(moved, p - 0.5 * g.sign())


CALLS: dict[str, tuple[int, dict[str, Any]]] = {
    "adagrad_": (1, {"lr": 1e-2, "eps": 1e-10, "weight_decay": 0.1, "step": 2}),
    "lion_": (1, {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}),
    "sgd_": (1, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
}


def tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [random(0).to(dtype), random(1), random(2).square().to(dtype)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seed", [-1, 11])
def test_pieces_with_their_offset_give_what_the_whole_gives(name: str, seed: int) -> None:
    whole, pieces, hyper = tensors(torch.bfloat16), tensors(torch.bfloat16), CALLS[name][1]
    op = getattr(ops, name)
    op(*whole, **hyper, rounding_seed=seed)
    for start, stop in ((0, 333), (333, 334), (334, NUMEL)):
        op(*(t[start:stop] for t in pieces), **hyper, rounding_seed=seed, rounding_offset=start)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_the_factor_multiplies_the_gradient_and_the_copy_is_the_rounded_parameter(name: str) -> None:
    scaled, plain, hyper = tensors(), tensors(), CALLS[name][1]
    scaled[1] *= 1024
    copy = torch.empty(NUMEL, dtype=torch.bfloat16)
    getattr(ops, name)(*scaled, copy, **hyper, grad_factor=torch.tensor(1 / 1024))
    getattr(ops, name)(*plain, **hyper)
    assert torch.equal(scaled[0], plain[0]) and torch.equal(scaled[2], plain[2])
    assert torch.equal(copy, plain[0].bfloat16())


@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_do_not_fit_are_named(name: str) -> None:
    op, hyper = getattr(ops, name), CALLS[name][1]
    p, g, s = tensors()
    for args, more, message in (
        ((p, g[:-1], s), {}, f"{name}: grad must have 6400 elements like param, got 6399"),
        ((p, g, s.double()), {}, f"{name}: .* must be float32, bfloat16, float16, got float64"),
        ((p, g.view(2, -1), s), {}, f"{name}: grad must be 1-D"),
        ((p, g, s, torch.empty(2 * NUMEL)[::2]), {}, f"{name}: copy_out must be contiguous"),
        ((p, g, s), {"grad_factor": torch.ones(1)}, f"{name}: grad_factor must be a 0-dim float32 tensor"),
        ((p, g, s), {"rounding_offset": -1}, f"{name}: rounding_offset must be 0 or more, got -1"),
    ):
        with pytest.raises(OpError, match=message):
            op(*args, **hyper, **more)


def test_numbers_out_of_range_are_named() -> None:
    p, g, s = tensors()
    with pytest.raises(OpError, match=r"beta1 and beta2 must be in \[0, 1\), got 0.9 and 1.0"):
        ops.lion_(p, g, s, lr=1.0, beta1=0.9, beta2=1.0, weight_decay=0.0)
    with pytest.raises(OpError, match="adagrad_: step must be 1 or more"):
        ops.adagrad_(p, g, s, **{**CALLS["adagrad_"][1], "step": 0})
    with pytest.raises(OpError, match=r"exactly if momentum is not 0, got one and momentum 0\.0"):
        ops.sgd_(p, g, s, lr=1.0)
    with pytest.raises(OpError, match=r"exactly if momentum is not 0, got none and momentum 0\.9"):
        ops.sgd_(p, g, lr=1.0, momentum=0.9)
