"""Boxes: flat ranges cut into as few of them as can be, and back."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_core.checkpoint.storage.boxes import Box, cut, intersect, runs, span, within

shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@st.composite
def ranges(draw) -> tuple[tuple[int, ...], int, int]:
    shape = draw(shapes)
    start = draw(st.integers(0, math.prod(shape)))
    return shape, start, draw(st.integers(start, math.prod(shape)))


@st.composite
def boxes(draw, shape: tuple[int, ...] | None = None) -> tuple[tuple[int, ...], Box]:
    shape = draw(shapes) if shape is None else shape
    offset = tuple(draw(st.integers(0, extent - 1)) for extent in shape)
    size = tuple(draw(st.integers(1, extent - begin)) for extent, begin in zip(shape, offset, strict=True))
    return shape, Box(offset, size)


def elements(shape: tuple[int, ...], box: Box) -> list[int]:
    numbers = torch.arange(math.prod(shape)).view(shape)
    return numbers[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))].flatten().tolist()


@given(ranges())
def test_a_range_is_cut_into_few_boxes_in_order(case):
    shape, start, stop = case
    found = cut(shape, start, stop)
    assert list(itertools.chain.from_iterable(elements(shape, box) for box in found)) == list(range(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)
    assert all(within(shape, box) and len(list(runs(shape, box, start, stop))) == 1 for box in found)


@given(boxes(), st.data())
def test_runs_name_the_elements_of_a_box_in_a_range(case, data):
    shape, box = case
    start = data.draw(st.integers(0, math.prod(shape)))
    stop = data.draw(st.integers(start, math.prod(shape)))
    inside = elements(shape, box)
    found = list(runs(shape, box, start, stop))
    assert [i for run in found for i in range(run.start, run.start + run.numel)] == [
        i for i in inside if start <= i < stop
    ]
    assert all(inside[run.inner : run.inner + run.numel][0] == run.start for run in found)


@given(boxes())
def test_the_span_begins_and_ends_with_the_box(case):
    shape, box = case
    inside = elements(shape, box)
    assert span(shape, box) == (inside[0], inside[-1] + 1)


@given(boxes(), st.data())
def test_boxes_meet_where_their_elements_do(case, data):
    shape, left = case
    _, right = data.draw(boxes(shape))
    common = intersect(left, right)
    both = sorted(set(elements(shape, left)) & set(elements(shape, right)))
    assert (elements(shape, common) if common is not None else []) == both


def test_a_box_of_other_dimensions_or_beyond_the_tensor_is_not_within():
    assert within((3, 4), Box((1, 0), (2, 4)))
    assert not within((3, 4), Box((1, 0), (3, 4)))
    assert not within((3, 4), Box((1,), (2,)))
    assert not within((3, 4), Box((-1, 0), (2, 4)))
