"""Every schedule gives the numbers of one process."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from staged_model import Trained, assert_close, assert_same, settings, train, train_all

from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zbv", "dualpipev")
ONE_STAGE_PER_RANK = ("gpipe", "1f1b", "zb-h1")
BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 20, "hysteresis": 1}}


@cache
def alone(kind: str, micro_batches: int, precision: str = "") -> Trained:
    """The same model on one process, which computes with one thread as ranks do."""
    sections: dict[str, Any] = {"bf16": BF16, "fp16": FP16, "": {}}[precision]
    return run_ranks(train, 1, settings(micro_batches, **sections), kind)[0]


@cache
def on_two_data_ranks(stage: int) -> Trained:
    """The same model whole on each of two ranks that divide the data."""
    return run_ranks(train, 2, settings(zero_optimization={"stage": stage}), "plain", 1)[0]


def cases(kind: str, stages: int, micro_batches: int = 4, **sections: Any) -> list[tuple[dict[str, Any], str, int]]:
    """One for each schedule."""
    more = sections.pop("pipeline", {})
    return [
        (settings(micro_batches, **sections, pipeline={"schedule": name, **more}), kind, stages) for name in SCHEDULES
    ]


def by_case(world: int, given: list[tuple[dict[str, Any], str, int]]) -> list[list[Trained]]:
    """What each case left on every rank."""
    return [list(runs) for runs in zip(*run_ranks(train_all, world, given), strict=True)]


@pytest.mark.parametrize("kind", ["plain", "tuple"])
def test_two_stages_are_one_process_to_the_bit(kind: str) -> None:
    for runs in by_case(2, cases(kind, 2)):
        assert_same(runs, alone(kind, 4))


def test_four_stages_and_tied_weights_of_one_micro_batch_are_one_process_to_the_bit() -> None:
    for runs in by_case(4, cases("tied", 4, micro_batches=1)):
        assert_same(runs, alone("tied", 1))


def test_tied_weights_over_micro_batches_differ_by_the_order_of_their_sum() -> None:
    """One process adds head and embedding of each micro-batch; stages add their own micro-batches first."""
    for runs in by_case(2, cases("tied", 2)):
        assert_close(runs, alone("tied", 4), atol=1e-6)


def test_data_and_pipe_together_are_data_ranks_alone_to_the_bit() -> None:
    for stage in (0, 1, 2):
        given = cases("plain", 2, zero_optimization={"stage": stage})
        for name, runs in zip(SCHEDULES, by_case(4, given), strict=True):
            if stage < 2 or name in ONE_STAGE_PER_RANK:
                assert_same(runs, on_two_data_ranks(stage))
            else:  # gradients of one stage meet while those of the next micro-batch are under way in the other
                assert_close(runs, on_two_data_ranks(stage), atol=1e-5)


def test_tied_weights_with_data_ranks() -> None:
    given = [(settings(1, zero_optimization={"stage": stage}), "tied", stages) for stages in (1, 2) for stage in (0, 1)]
    whole = by_case(2, given[:2])
    for runs, reference in zip(by_case(4, given[2:]), whole, strict=True):
        assert_close(runs, reference[0], atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_one_process_to_the_bit(precision: str) -> None:
    """With fp16 the last layer overflows in some steps, and all stages skip those."""
    sections = {"bf16": BF16, "fp16": FP16}[precision]
    assert (0 < alone("plain", 4, precision).skipped < 3) == (precision == "fp16")
    for runs in by_case(2, cases("plain", 2, **sections)):
        assert_same(runs, alone("plain", 4, precision))


def test_recomputation_changes_nothing() -> None:
    for runs in by_case(2, cases("plain", 2, pipeline={"activation_checkpoint_interval": 2})):
        assert_same(runs, alone("plain", 4))
