"""Layers divided into stages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pipeline import PartitionError
from ds_pipeline.partition import LayerCost, balance, plan_partition


def rows(*numels: int) -> list[LayerCost]:
    """Layers with these numbers of parameters."""
    return [LayerCost("Linear" if numel else "function", numel) for numel in numels]


def heaviest(weights: Sequence[float], boundaries: Sequence[int]) -> float:
    """The heaviest run."""
    return max(sum(weights[start:stop]) for start, stop in itertools.pairwise(boundaries))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 5), st.data())
def test_no_division_has_a_lighter_heaviest_stage(weights: list[int], parts: int, data: st.DataObject) -> None:
    holders = data.draw(st.lists(st.booleans(), min_size=len(weights), max_size=len(weights)))
    found = balance([float(weight) for weight in weights], parts, holders)
    every = [
        (0, *cuts, len(weights))
        for cuts in itertools.combinations(range(1, len(weights)), parts - 1)
        if all(any(holders[a:b]) for a, b in itertools.pairwise((0, *cuts, len(weights))))
    ]
    if found is None:
        assert not every
    else:
        assert found in every
        assert heaviest(weights, found) == min(heaviest(weights, each) for each in every)


def test_methods() -> None:
    layers = rows(10, 1, 1, 1, 1, 10)
    assert plan_partition(layers, 2, "uniform").boundaries == (0, 3, 6)
    assert plan_partition(layers, 3, "parameters").boundaries == (0, 1, 5, 6)
    named = [LayerCost(name, 1) for name in ("Embedding", "Block", "Block", "Block", "Block", "Head")]
    assert plan_partition(named, 2, "type:block").boundaries == (0, 3, 6)
    timed = [LayerCost("Block", 1, ms, 0) for ms in (4.0, 1.0, 1.0, 1.0, 1.0)]
    assert plan_partition(timed, 2, "best").boundaries == (0, 1, 5)
    assert plan_partition(layers, 2, "best").method == "parameters"
    assert plan_partition(layers, 2, [0, 2, 6]).boundaries == (0, 2, 6)


def test_a_stage_never_lacks_parameters_where_that_can_be_had() -> None:
    assert plan_partition(rows(1, 0, 0, 0, 0, 1), 2, "uniform").boundaries == (0, 3, 6)
    assert plan_partition(rows(1, 1, 0, 0, 0, 0), 2, "uniform").boundaries == (0, 1, 6)


@pytest.mark.parametrize(
    ("layers", "stages", "method", "message"),
    [
        (rows(1, 0, 0), 2, "uniform", r"stage 1 would have no parameters.*\n2 stages by uniform\nstage +layers"),
        (rows(1, 0, 1), 2, [0, 1, 2], r"give 3 rising boundaries, the first 0 and the last 3"),
        (rows(1, 1, 0), 2, [0, 2, 3], r"stage 1 would have no parameters"),
        (rows(1), 2, "uniform", r"1 layers cannot be divided into 2 stages"),
        (rows(1, 1), 2, "profile", r"pass sample="),
        (rows(1, 1), 2, "type:Blok", r"matches no layer; layers are Linear"),
        (rows(1, 1), 2, "type:(", r"is no regular expression"),
        (rows(1, 1), 2, "even", r"must be 'best', 'parameters'.*; got 'even'"),
    ],
)
def test_what_cannot_be_divided_says_why(
    layers: list[LayerCost], stages: int, method: str | list[int], message: str
) -> None:
    with pytest.raises(PartitionError, match=f"(?s){message}"):
        plan_partition(layers, stages, method)


def test_the_plan_prints_as_a_table() -> None:
    layers = [LayerCost("Embedding", 5000, 0.5, 2**20), *(LayerCost("Block", 700, 1.25, 2**21) for _ in range(3))]
    assert str(plan_partition(layers, 2, "profile")).splitlines() == [
        "2 stages by profile",
        "stage  layers  parameters    ms    MB  what",
        "0      0-1          5,700  1.75  3.00  Embedding, Block",
        "1      2-3          1,400  2.50  4.00  2 x Block",
    ]
