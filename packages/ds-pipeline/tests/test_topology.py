"""Ranks and coordinates, by arithmetic."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_core import mesh
from ds_core.hooks import AxisRequest
from ds_pipeline.errors import TopologyError
from ds_pipeline.topology import (
    PipeDataParallelTopology,
    PipeModelDataParallelTopology,
    ProcessTopology,
    topology_of,
)

TOPOLOGIES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(
    lambda dims: ProcessTopology([f"axis{place}" for place in range(len(dims))], dims)
)


@given(TOPOLOGIES)
def test_coordinates_and_ranks_are_inverse_and_the_last_axis_varies_fastest(topology):
    coords = [topology.get_coord(rank) for rank in range(topology.world_size())]
    assert coords == sorted(coords)
    assert [topology.get_rank(**coord._asdict()) for coord in coords] == list(range(topology.world_size()))


@given(TOPOLOGIES, st.data())
def test_groups_along_an_axis_hold_every_rank_once_and_differ_only_there(topology, data):
    axis = data.draw(st.sampled_from(topology.get_axis_names()))
    groups = topology.get_axis_comm_lists(axis)
    assert sorted(rank for group in groups for rank in group) == list(range(topology.world_size()))
    for group in groups:
        assert [getattr(topology.get_coord(rank), axis) for rank in group] == list(range(topology.get_dim(axis)))
        assert len({topology.get_coord(rank)._replace(**{axis: 0}) for rank in group}) == 1


@given(TOPOLOGIES, st.data())
def test_filters_find_exactly_the_ranks_that_match(topology, data):
    axes = data.draw(st.lists(st.sampled_from(topology.axes), unique=True))
    wanted = {axis: data.draw(st.integers(0, topology.get_dim(axis) - 1)) for axis in axes}
    found = topology.filter_match(**wanted)
    for rank in range(topology.world_size()):
        coord = topology.get_coord(rank)
        assert (rank in found) == all(getattr(coord, axis) == at for axis, at in wanted.items())
    for axis, at in wanted.items():
        assert topology.get_axis_list(axis, at) == topology.filter_match(**{axis: at})


def test_the_presets_have_stages_outside_and_slices_inside():
    assert PipeDataParallelTopology(num_pp=2, num_dp=3).get_axis_comm_lists("data") == [[0, 1, 2], [3, 4, 5]]
    three = PipeModelDataParallelTopology(num_pp=2, num_mp=3, num_dp=2)
    assert three.get_axis_names() == ["pipe", "data", "model"]
    assert three.get_axis_comm_lists("model") == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert three.get_axis_comm_lists("pipe") == [[rank, rank + 6] for rank in range(6)]


def test_the_names_of_a_rank():
    topology = ProcessTopology(["pipe", "data", "model"], [2, 2, 12])
    assert topology.get_rank_repr(23) == "model_11"
    assert topology.get_rank_repr(24, omit_axes=["data"]) == "pipe_01-model_00"
    assert topology.get_rank_repr(24, omit_axes=[], inner_sep="=", outer_sep=",") == "pipe=01,data=00,model=00"
    assert PipeDataParallelTopology(2, 2).get_rank_repr(3) == ""


def test_an_axis_that_is_not_there_has_no_ranks_and_no_groups():
    topology = PipeDataParallelTopology(2, 2)
    assert topology.get_dim("model") == 0
    assert topology.get_axis_comm_lists("model") == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.get_rank(pipe=0), "data is missing"),
        (lambda t: t.get_rank(pipe=0, dota=0), "has no axis 'dota'. Did you mean 'data'?"),
        (lambda t: t.get_rank(pipe=2, data=0), "is outside pipe 2 x data 3"),
        (lambda t: t.get_coord(6), "rank 6 is outside pipe 2 x data 3, whose ranks are 0 to 5"),
        (lambda t: t.get_coord(-1), "rank -1 is outside"),
        (lambda t: t.filter_match(model=0), "has no axis 'model'"),
        (lambda t: ProcessTopology(["a"], [1, 2]), "one size for each axis, got 2 for 1"),
        (lambda t: ProcessTopology(["a", "a"], [1, 2]), "must be different identifiers, got a, a"),
        (lambda t: ProcessTopology(["a b"], [1]), "must be different identifiers, got a b"),
        (lambda t: ProcessTopology(["a"], [0]), r"must be at least 1, got \[0\] for a"),
    ],
)
def test_what_is_not_there_is_named(call, message):
    with pytest.raises(TopologyError, match=message):
        call(PipeDataParallelTopology(2, 3))


def test_ranks_are_those_of_the_mesh():
    requests = [AxisRequest("pipe", 2, 100), AxisRequest("tensor", 2, 500)]
    plan = mesh.plan(requests, world_size=12)
    topology = topology_of(plan)
    preset = PipeModelDataParallelTopology(num_pp=2, num_mp=2, num_dp=3)
    for rank in range(12):
        assert topology.get_coord(rank)._asdict() == plan.coords(rank)
        assert tuple(topology.get_coord(rank)) == tuple(preset.get_coord(rank))
    assert [tuple(group) for group in topology.groups("pipe", "tensor")] == list(plan.groups("pipe", "tensor"))


def test_topologies_need_no_torch():
    program = (
        "import sys\n"
        "from ds_pipeline.topology import PipeDataParallelTopology, PipelineParallelGrid\n"
        "PipeDataParallelTopology(2, 2)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
