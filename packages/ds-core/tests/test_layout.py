"""Flat layouts cover every parameter once, end buckets at parameters, and shard evenly."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_core.errors import ConfigError
from ds_core.layout import Range, intersect, plan_layout

SHAPES = st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=3), min_size=0, max_size=12)


@given(shapes=SHAPES, shards=st.integers(1, 5), bucket=st.integers(1, 400), alignment=st.sampled_from([1, 4, 32]))
def test_layout_covers_every_element_once(shapes, shards, bucket, alignment):
    named = [(f"p{i}", shape) for i, shape in enumerate(shapes)]
    layout = plan_layout(named, shards=shards, bucket_numel=bucket, alignment_numel=alignment)
    assert [slot.numel for slot in layout.slots] == [math.prod(shape) for shape in shapes]
    assert sum(slot.numel for slot in layout.slots) + layout.padding == layout.numel
    for before, after in itertools.pairwise(layout.slots):
        assert before.stop <= after.start
    owned = [part for rank in range(shards) for part in layout.shard_ranges(rank)]
    assert sum(part.numel for part in owned) == layout.numel
    seen = sorted((part.start, part.stop) for part in owned)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(seen))


@given(shapes=SHAPES, shards=st.integers(1, 5), bucket=st.integers(1, 400))
def test_buckets_end_at_parameters_and_divide_by_shards(shapes, shards, bucket):
    layout = plan_layout([(f"p{i}", shape) for i, shape in enumerate(shapes)], shards=shards, bucket_numel=bucket)
    for piece in layout.buckets:
        inside = [s for s in layout.slots if s.numel and piece.start <= s.start < piece.stop]
        assert all(slot.stop <= piece.stop for slot in inside)
        assert (piece.stop - piece.start) % (shards * 32) == 0
        assert len(inside) == 1 or sum(slot.numel for slot in inside) <= bucket


@given(shapes=SHAPES, shards=st.integers(1, 4))
def test_fragments_of_all_shards_make_up_each_slot(shapes, shards):
    layout = plan_layout([(f"p{i}", shape) for i, shape in enumerate(shapes)], shards=shards, bucket_numel=64)
    count = [0] * len(layout.slots)
    for rank in range(shards):
        for index, part in layout.fragments(layout.shard_ranges(rank)):
            assert layout.slots[index].start <= part.start < part.stop <= layout.slots[index].stop
            count[index] += part.numel
    assert count == [slot.numel for slot in layout.slots]


def test_intersect_is_none_when_ranges_only_touch():
    assert intersect(Range(0, 4), 4, 8) is None
    assert intersect(Range(0, 5), 4, 8) == Range(4, 5)


@pytest.mark.parametrize("setting", [{"shards": 0}, {"bucket_numel": 0}, {"alignment_numel": 0}])
def test_sizes_below_one_are_refused(setting):
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        plan_layout([("w", (3,))], **setting)
