"""Values of the wrong kind are found before a part takes them."""

from __future__ import annotations

import pytest

from ds_core.checkpoint.plausible import check_kinds, distrusting
from ds_core.errors import CheckpointError


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({"lr": 0.1}, {"lr": 1}),
        ({"lr": 0.1}, {"lr": None}),
        ({"lr": 0.1}, {"more": "x"}),
        ({"betas": (0.9, 0.99)}, {"betas": [0.8, 0.9]}),
        ({"steps": None}, {"steps": [1]}),
        ([], [1, "a"]),
        ([1, "a"], ["a", 1]),
        ({"verbose": False}, {"verbose": "deprecated"}),
    ],
)
def test_kinds_that_go_together(own, found):
    check_kinds(own, found, "value")


@pytest.mark.parametrize(
    ("own", "found", "message"),
    [
        ({"lr": 0.1}, {"lr": "high"}, r"value.lr is 'high', a str; it must be a float"),
        ({"lr": 0.1}, 5, r"value is 5, a int; it must be a dict"),
        ([{"lr": 0.1}], [{"lr": 0.1}, {"lr": []}], r"value\[1\].lr is \[\], a list; it must be a float"),
        ([0.9], {"0": 0.9}, r"value is \{'0': 0.9\}, a dict; it must be a list"),
        ({"name": "a"}, {"name": {}}, r"value.name is \{\}, a dict; it must be a str"),
        (1, "x" * 1000, r"value is 'x+\.\.\., a str"),
    ],
)
def test_kinds_that_do_not(own, found, message):
    with pytest.raises(CheckpointError, match=message):
        check_kinds(own, found, "value")


def test_what_nobody_expected_is_an_error_of_the_checkpoint():
    with pytest.raises(CheckpointError, match=r"a kind that no engine keeps there \(KeyError: 'lr'\)"):
        distrusting(lambda: {}["lr"])()
