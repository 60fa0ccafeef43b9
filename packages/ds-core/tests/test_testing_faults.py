"""Faults happen where they are asked for, and the check notices ranks that do not."""

from __future__ import annotations

import time

import pytest
import torch

from ds_core import comm
from ds_core.errors import CommError
from ds_core.testing import RankDied, delay, expect_error_on_all_ranks, fail_at, kill_rank, run_ranks
from ds_core.testing.faults import FaultError


def killed() -> str:
    kill_rank(1)
    return "alive"


def test_kill_rank_kills_that_rank_only() -> None:
    assert run_ranks(killed, 2, dies=[1]) == ["alive", RankDied(-9)]


def stepping(rank: int | None) -> int:
    check = fail_at(2, rank=rank)
    for step in range(5):
        check(step)
        comm.all_reduce(torch.zeros(1))
    return step


def test_one_rank_failing_fails_the_others_collective() -> None:
    failures = expect_error_on_all_ranks(stepping, 2, 1)
    assert isinstance(failures[1].exception, FaultError)
    assert "at step 2 on rank 1" in failures[1].message
    assert isinstance(failures[0].exception, CommError)
    assert "call 3" in failures[0].message


def test_a_rank_that_fails_differently_is_named() -> None:
    with pytest.raises(AssertionError, match="rank 0 raised CommError, not FaultError"):
        expect_error_on_all_ranks(stepping, 2, 1, kind=FaultError)
    with pytest.raises(AssertionError, match=r"rank 0 raised a message without 'nothing like it'"):
        expect_error_on_all_ranks(stepping, 2, None, match="nothing like it")


def quiet() -> None:
    return None


def half() -> None:
    fail_at(0, rank=1)(0)


def test_ranks_that_do_not_fail_are_named() -> None:
    with pytest.raises(AssertionError, match="no rank of 2 failed"):
        expect_error_on_all_ranks(quiet, 2)
    with pytest.raises(AssertionError, match="rank 0 did not fail"):
        expect_error_on_all_ranks(half, 2)
    assert set(expect_error_on_all_ranks(half, 2, except_ranks=[0])) == {1}


def late() -> float:
    started = time.perf_counter()
    delay(0.3, rank=1)
    return time.perf_counter() - started


def test_delay_is_for_one_rank() -> None:
    on_time, late_s = run_ranks(late, 2)
    assert on_time < 0.25
    assert late_s >= 0.3
