"""The parity harness tells runs that are equal from runs that are not."""

from __future__ import annotations

import math

import pytest
import torch

from ds_core.testing import assert_bit_equal, run_ranks, train_engine, train_plain, ulp_distance
from ds_core.testing.parity import MODELS, Run, compare_runs, make_data


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_neighbours_are_one_ulp_apart(dtype: torch.dtype) -> None:
    for start in (1.0, -1.0, 0.0):
        a = torch.tensor([start, 2.0], dtype=dtype)
        b = torch.nextafter(a.float() if dtype in (torch.float16, torch.bfloat16) else a, torch.tensor(math.inf))
        if dtype in (torch.float16, torch.bfloat16):
            b = a.view(torch.int16).add(-1 if start < 0 else 1).view(dtype)
        assert ulp_distance(a, b.to(dtype)) == 1
        assert ulp_distance(a, a) == 0


def test_zeros_of_both_signs_are_close_but_not_the_same_bits() -> None:
    plus, minus = torch.tensor([0.0]), torch.tensor([-0.0])
    assert ulp_distance(plus, minus) == 0
    with pytest.raises(AssertionError, match=r"w: 1 of 1 elements differ.*0.0 is not -0.0"):
        assert_bit_equal(plus, minus, "w")


def test_nan_is_far_from_numbers_only() -> None:
    nan = torch.tensor([math.nan, 1.0])
    assert ulp_distance(nan, nan.clone()) == 0
    assert ulp_distance(nan, torch.tensor([1.0, 1.0])) == 2**63 - 1


def test_shapes_and_dtypes_must_match() -> None:
    with pytest.raises(AssertionError, match="cannot compare"):
        ulp_distance(torch.zeros(2), torch.zeros(3))
    with pytest.raises(AssertionError, match="bias"):
        assert_bit_equal(torch.zeros(2), torch.zeros(2, dtype=torch.float64), "bias")
    assert_bit_equal(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("name", MODELS)
def test_plain_training_is_repeatable_and_learns(name: str) -> None:
    data = make_data(4, 8)
    first, second = (train_plain(MODELS[name], data * 3) for _ in range(2))
    compare_runs(first, second)
    assert len(first.losses) == len(first.grad_norms) == 12
    assert first.losses[-1] < first.losses[0]


def test_pieces_change_rounding_only() -> None:
    data = make_data(3, 8)
    whole, cut = train_plain(MODELS["mlp"], data), train_plain(MODELS["mlp"], data, pieces=4)
    compare_runs(whole, cut, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError, match="differ, by up to"):
        compare_runs(whole, cut)


def test_a_wrong_clip_is_noticed() -> None:
    data = make_data(3, 8)
    plain, clipped = train_plain(MODELS["mlp"], data), train_plain(MODELS["mlp"], data, clip=0.01)
    with pytest.raises(AssertionError):
        compare_runs(plain, clipped, rtol=1e-4, atol=1e-5)


def test_runs_of_different_kind_are_refused() -> None:
    with pytest.raises(AssertionError, match="differ in kind"):
        compare_runs(Run(losses=[1.0]), Run(losses=[1.0, 2.0]))


CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-2}},
}


def engine_run(name: str) -> Run:
    return train_engine(MODELS[name], CONFIG, make_data(3, 8))


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_gives_the_plain_numbers(name: str) -> None:
    plain = train_plain(MODELS[name], make_data(3, 8), pieces=4)
    for run in run_ranks(engine_run, 2, name):
        compare_runs(plain, run, rtol=1e-5, atol=1e-6)
