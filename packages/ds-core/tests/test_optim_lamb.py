"""LAMB: the formula in double precision, trust ratios, segments of flat runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import ConfigError, OpError
from ds_core.optim.flat import FlatUpdate, Segment, supports_flat, takes_flat
from ds_core.optim.op_lamb import OpLamb

SHAPES = ((7,), (64, 33), (5, 4, 3))


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def wide_lamb(p: Any, g: Any, m: Any, v: Any, step: int, *, decay: float, inside: bool) -> Any:
    """One step in double precision, lr 0.1, betas 0.9 and 0.999, eps 1e-3: param, moments, ratio."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    hat_m, hat_v = m / (1 - 0.9**step), v / (1 - 0.999**step)
    direction = hat_m / ((hat_v + 1e-3).sqrt() if inside else hat_v.sqrt() + 1e-3) + decay * p
    ratio = (p.norm() / direction.norm()).clamp(0.01, 10)
    return p - 0.1 * ratio * direction, m, v, ratio


@pytest.mark.parametrize("inside", [False, True])
def test_five_steps_are_the_formula(inside: bool) -> None:
    params = parameters()
    wide = [(p.detach().double(), torch.zeros_like(p).double(), torch.zeros_like(p).double()) for p in params]
    optimizer = OpLamb(params, lr=0.1, eps=1e-3, weight_decay=0.05, eps_inside_sqrt=inside)
    for step in range(1, 6):
        give_gradients(params, step)
        optimizer.step()
        ratios = []
        for index, param in enumerate(params):
            assert param.grad is not None
            *state, ratio = wide_lamb(
                wide[index][0], param.grad.double(), *wide[index][1:], step, decay=0.05, inside=inside
            )
            wide[index] = tuple(state)
            ratios.append(ratio.item())
        assert optimizer.get_lamb_coeffs() == pytest.approx(ratios, rel=1e-5)
    for param, (want, *_) in zip(params, wide, strict=True):
        torch.testing.assert_close(param.detach().double(), want, rtol=1e-5, atol=1e-6)


def test_ratios_have_limits_and_are_one_where_nothing_can_be_compared() -> None:
    big, small, zero, still = (torch.nn.Parameter(torch.full((8,), x)) for x in (1e6, 1e-6, 0.0, 1.0))
    for param, grad in ((big, 1.0), (small, 1.0), (zero, 1.0), (still, 0.0)):
        param.grad = torch.full((8,), grad)
    optimizer = OpLamb([big, small, zero, still], max_coeff=5.0, min_coeff=0.5)
    optimizer.step()
    assert optimizer.get_lamb_coeffs() == [5.0, 0.5, 1.0, 1.0]


def test_max_grad_norm_clips_over_all_parameters() -> None:
    clipped, scaled = parameters(), parameters()
    give_gradients(clipped, 0)
    norm = torch.cat([p.grad.flatten() for p in clipped if p.grad is not None]).norm()
    for ours, theirs in zip(scaled, clipped, strict=True):
        assert theirs.grad is not None
        ours.grad = theirs.grad * (0.5 / norm)
    first, second = OpLamb(clipped, eps=1e-2, max_grad_norm=0.5), OpLamb(scaled, eps=1e-2)
    first.step()
    second.step()
    for got, want in zip(clipped, scaled, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_state_dict_continues_the_run() -> None:
    first, second = parameters(), parameters()
    begun = OpLamb(first, lr=0.1)
    give_gradients(first, 0)
    begun.step()
    resumed = OpLamb(second, lr=0.5)
    resumed.load_state_dict(begun.state_dict())
    for theirs, ours in zip(first, second, strict=True):
        ours.data.copy_(theirs.data)
        ours.grad = theirs.grad
    begun.step()
    resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_segments_of_flat_runs_are_the_parameters() -> None:
    params = parameters()
    whole = OpLamb(params, lr=0.1)
    flat = torch.nn.Parameter(torch.cat([p.detach().flatten() for p in params]))
    pieces = OpLamb([flat], lr=0.1)
    assert takes_flat(pieces) and not supports_flat(pieces)
    copy = torch.zeros(flat.numel(), dtype=torch.bfloat16)
    for step in range(1, 4):
        give_gradients(params, step)
        whole.step()
        grad = torch.cat([p.grad.flatten() for p in params if p.grad is not None]) * 4
        cut = 1000  # in the second parameter, whose norm is then the sum of two segments
        runs = [(0, cut), (cut, flat.numel())]
        updates = [FlatUpdate(flat.data[a:b], grad[a:b], copy[a:b], a, 0, 0, step) for a, b in runs]
        edges = [(0, 7, 0), (7, 2119, 1), (2119, 2179, 2)]
        segments = [
            [Segment(max(s, a) - a, min(e, b) - a, key) for s, e, key in edges if s < b and e > a] for a, b in runs
        ]
        pieces.step_segments(updates, segments, parameters=3, total=lambda table: table, grad_factor=torch.tensor(0.25))
        assert pieces.get_lamb_coeffs() == pytest.approx(whole.get_lamb_coeffs(), rel=1e-6)
    torch.testing.assert_close(flat.detach(), torch.cat([p.detach().flatten() for p in params]), rtol=1e-6, atol=1e-6)
    assert torch.equal(copy, flat.detach().bfloat16())


def test_rollback_is_exact() -> None:
    params = parameters()
    optimizer = OpLamb(params, lr=0.1)
    for step in range(2):
        give_gradients(params, step)
        before = [p.detach().clone() for p in params] + [optimizer.state[p].get("exp_avg_sq") for p in params]
        before = [None if value is None else value.clone() for value in before]
        for index in range(len(params)):
            optimizer.step_subgroup(index)
        if step:
            for index in range(len(params)):
                optimizer.rollback_subgroup(index)
    after = [p.detach() for p in params] + [optimizer.state[p]["exp_avg_sq"] for p in params]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a is not None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"betas": (0.9, 1.0)}, r"betas of Lamb must be two numbers in \[0, 1\)"),
        ({"min_coeff": 2.0, "max_coeff": 1.0}, r"max_coeff of Lamb must be at least min_coeff \(2\.0\), got 1\.0"),
        ({"amsgrad": True}, "amsgrad of Lamb must be false"),
        ({"max_grad_norm": -1.0}, "max_grad_norm of Lamb must be 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpLamb(parameters(), **wrong)


HYPER: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "step": 1}


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 5, 4], "pairs of start and stop, got 3 numbers"),
        ([4, 11], "within 10 elements, got 4 to 11"),
        ([5, 4], "5"),
    ],
)
def test_bounds_that_do_not_fit_are_named(bounds: list[int], message: str) -> None:
    p, g, m, v = (torch.zeros(10) for _ in range(4))
    with pytest.raises(OpError, match=message):
        ops.lamb_moments_(p, g, m, v, bounds, **HYPER)


def test_a_ratio_is_needed_for_each_segment() -> None:
    p, m, v = (torch.zeros(10) for _ in range(3))
    with pytest.raises(OpError, match=r"ratios must be float32 of shape \(1,\), one a segment"):
        ops.lamb_apply_(p, m, v, torch.ones(2), [0, 10], lr=1.0, **HYPER)
