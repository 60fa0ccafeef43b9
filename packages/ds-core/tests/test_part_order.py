"""Parts are ordered by what they declare, never by the order they came in."""

from __future__ import annotations

import itertools

import pytest

from ds_core.errors import PluginError
from ds_core.part import Part, order_parts, overrides


def part(name: str, **declared: tuple[str, ...]) -> Part:
    return type(name, (Part,), {"name": name, **declared})()


def test_order_is_the_same_for_every_order_of_arrival():
    parts = [part("c", after=("b",)), part("a", before=("b",)), part("b"), part("d", after=("absent", "a"))]
    orders = {tuple(p.name for p in order_parts(given)) for given in itertools.permutations(parts)}
    assert orders == {("a", "b", "d", "c")}


def test_a_circle_is_an_error_that_shows_it():
    with pytest.raises(PluginError, match="circular order"):
        order_parts([part("a", after=("b",)), part("b", after=("a",))])


def test_two_parts_of_one_name_are_an_error():
    with pytest.raises(PluginError, match="two parts are named 'a'"):
        order_parts([part("a"), part("a")])


def test_conflicting_parts_are_an_error():
    with pytest.raises(PluginError, match="'a' and 'b' cannot be in one engine"):
        order_parts([part("a", conflicts_with=("b",)), part("b")])


def test_a_part_without_a_name_is_an_error():
    with pytest.raises(PluginError, match="has no name"):
        order_parts([Part()])


def test_overrides_calls_only_what_a_part_defines():
    class Scales(Part):
        name = "scales"

        def loss_factor(self) -> float:
            return 3.0

    assert [ask() for ask in overrides([part("plain"), Scales()], "loss_factor")] == [3.0]
