"""Units hold every parameter once and stay within their limit; flat groups of units cover it, with bounded padding."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ds_core.flat import NamedParameter, group_layouts
from ds_core.layout import ALIGNMENT_NUMEL, plan_layout
from ds_core.units import SMALL, plan_units, unit_limit

SHAPE = st.lists(st.integers(0, 9), max_size=3)
TREE = st.recursive(
    st.lists(SHAPE, min_size=1, max_size=3),
    lambda children: st.tuples(st.lists(SHAPE, max_size=2), st.lists(children, min_size=1, max_size=3)),
    max_leaves=8,
)
DTYPES = (torch.float32, torch.bfloat16)


def grow(node) -> nn.Module:
    """A module on the meta device: a list of shapes is a leaf, a pair has shapes of its own and children."""
    own, children = node if isinstance(node, tuple) else (node, [])
    module = nn.Module()
    for index, shape in enumerate(own):
        module.register_parameter(f"p{index}", nn.Parameter(torch.empty(tuple(shape), device="meta")))
    for index, child in enumerate(children):
        module.add_module(f"c{index}", grow(child))
    return module


def sizes(module: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in module.named_parameters()}


def is_inside(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


@given(tree=TREE, small=st.integers(0, 30), limit=st.none() | st.integers(1, 400))
def test_every_parameter_is_in_exactly_one_unit(tree, small, limit):
    module = grow(tree)
    units = plan_units(module, small_numel=small, limit_numel=limit)
    numels = sizes(module)
    assert sorted(name for unit in units for name in unit.names) == sorted(numels)
    assert [unit.index for unit in units] == list(range(len(units)))
    for unit in units:
        assert unit.names
        assert unit.numel == sum(numels[name] for name in unit.names)
        assert unit.is_small or all(is_inside(name, unit.path) for name in unit.names)


@given(tree=TREE, small=st.integers(0, 30))
def test_small_parameters_and_no_others_make_the_last_unit(tree, small):
    module = grow(tree)
    units = plan_units(module, small_numel=small)
    expected = {n for n, p in module.named_parameters() if p.numel() <= max(small, 1) or p.dim() == 0}
    found = {name for unit in units if unit.path == SMALL for name in unit.names}
    assert found == expected
    assert not any(unit.is_small for unit in units[:-1])


@given(tree=TREE, small=st.integers(0, 30), limit=st.none() | st.integers(1, 400))
def test_a_unit_exceeds_the_limit_only_with_parameters_one_module_registers_itself(tree, small, limit):
    module = grow(tree)
    units = plan_units(module, small_numel=small, limit_numel=limit)
    bound = unit_limit(module, small) if limit is None else limit
    for unit in units:
        if not unit.is_small and unit.numel > bound:
            direct = {n for n, _ in module.get_submodule(unit.path).named_parameters(unit.path, recurse=False)}
            assert set(unit.names) <= direct


@given(tree=TREE, small=st.integers(0, 30))
def test_a_leaf_is_never_cut(tree, small):
    module = grow(tree)
    leaf = next(reversed(list(module.children())), module)
    path = next(name for name, owner in module.named_modules() if owner is leaf)
    units = plan_units(module, small_numel=small, limit_numel=1, is_leaf=lambda owner: owner is leaf)
    large = [name for name, p in module.named_parameters() if is_inside(name, path) and p.numel() > max(small, 1)]
    holding = {unit.index for unit in units for name in large if name in unit.names}
    assert len(holding) == bool(large)


@given(tree=TREE, small=st.integers(0, 30))
def test_parameters_to_stay_whole_join_the_small_ones(tree, small):
    module = grow(tree)
    chosen = list(module.parameters())[::2]
    names = {name for name, p in module.named_parameters() if any(p is one for one in chosen)}
    units = plan_units(module, small_numel=small, whole=chosen)
    assert names <= {name for unit in units if unit.is_small for name in unit.names}


def test_tied_parameters_are_in_the_unit_that_names_them_first():
    module = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    module[2].weight = module[0].weight
    assert [unit.names for unit in plan_units(module, small_numel=0)] == [("0.weight",), ("1.weight",)]


@given(
    tree=TREE,
    shards=st.integers(1, 9),
    bucket=st.integers(1, 500),
    small=st.integers(0, 30),
    marks=st.lists(st.tuples(st.integers(-1, 2), st.sampled_from(DTYPES)), min_size=1, max_size=5),
)
def test_groups_cover_every_element_once_and_pad_within_the_bound(tree, shards, bucket, small, marks):
    module = grow(tree)
    units = plan_units(module, small_numel=small)
    unit_of = {name: unit.index for unit in units for name in unit.names}
    members = []
    for (name, parameter), (group, dtype) in zip(module.named_parameters(), itertools.cycle(marks), strict=False):
        typed = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device="meta"))
        members.append(NamedParameter(name, typed, group, None, unit_of[name]))
    plans = group_layouts(members, shards=shards, bucket_numel=bucket)
    assert sorted(slot.name for _, layout in plans for slot in layout.slots) == sorted(unit_of)
    for group, layout in plans:
        assert len({(m.group_index, m.parameter.dtype) for m in group}) == 1
        counts = [0] * len(layout.slots)
        for rank in range(shards):
            for index, part in layout.fragments(layout.shard_ranges(rank)):
                counts[index] += part.numel
        assert counts == [slot.numel for slot in layout.slots]
        for piece in layout.buckets:
            assert len({unit_of[slot.name] for slot in layout.slots[piece.first : piece.last] if slot.numel}) == 1
            filled = sum(bool(slot.numel) for slot in layout.slots[piece.first : piece.last])
            # Fewer than an alignment before each parameter but the first, fewer than one a shard at the end.
            assert piece.padding < ALIGNMENT_NUMEL * (filled - 1 + shards)
            assert piece.padding == piece.numel - sum(s.numel for s in layout.slots[piece.first : piece.last])


@given(shapes=st.lists(SHAPE, max_size=10), shards=st.integers(1, 9))
def test_a_parameter_starts_aligned_and_lies_in_one_bucket(shapes, shards):
    layout = plan_layout([(f"p{i}", shape) for i, shape in enumerate(shapes)], shards=shards, bucket_numel=100)
    for slot in layout.slots:
        assert slot.start % ALIGNMENT_NUMEL == 0
        if slot.numel:
            piece = layout.buckets[layout.bucket_at(slot.start)]
            assert piece.start <= slot.start < slot.stop <= piece.stop
    assert sum(math.prod(shape) for shape in shapes) + layout.padding == layout.numel
