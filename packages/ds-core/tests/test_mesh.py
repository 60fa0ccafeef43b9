"""The mesh plan is arithmetic that prints; the mesh carries it out as process groups."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_core import comm
from ds_core.errors import CommError, ConfigError
from ds_core.hooks import AxisRequest
from ds_core.mesh import Mesh, plan
from ds_core.testing import run_ranks

PLACES = {"pipe": 100, "expert": 300, "sequence": 400, "tensor": 500}
REQUESTS = st.dictionaries(st.sampled_from(sorted(PLACES)), st.integers(1, 4), max_size=4)


def requests(sizes: dict[str, int]) -> list[AxisRequest]:
    return [AxisRequest(name, size, PLACES.get(name, 200)) for name, size in sizes.items()]


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.integers(1, 3))
def test_rank_and_coordinates_are_a_bijection(sizes: dict[str, int], data: int) -> None:
    world = data
    for size in sizes.values():
        world *= size
    made = plan(requests(sizes), world)
    assert made.size("data") == data
    seen = set()
    for rank in range(world):
        coords = made.coords(rank)
        assert made.rank(**coords) == rank
        seen.add(tuple(coords.items()))
    assert len(seen) == world


@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.integers(1, 3), st.data())
def test_groups_part_the_world(sizes: dict[str, int], data: int, draw: Any) -> None:
    world = data
    for size in sizes.values():
        world *= size
    made = plan(requests(sizes), world)
    names = draw.draw(st.lists(st.sampled_from([*made.names, "absent"]), min_size=1, unique=True))
    groups = made.groups(*names)
    assert sorted(itertools.chain(*groups)) == list(range(world))
    assert {len(group) for group in groups} == {made.size(*names)}
    for group in groups:
        assert list(group) == sorted(group)
        assert [made.along(rank, *names) for rank in group] == list(range(len(group)))


def test_outer_axes_vary_slowest_whatever_the_order_of_requests() -> None:
    made = plan(requests({"tensor": 2, "pipe": 2}), 8)
    assert made.names == ("pipe", "data", "tensor")
    assert made.shape == (2, 2, 2)
    assert made.groups("tensor") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert made.groups("pipe") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert made.groups("data", "tensor") == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_nothing_asked_for_is_all_data() -> None:
    made = plan([], 3)
    assert made.names == ("data",)
    assert made.size("data") == 3
    assert made.size("tensor") == 1
    assert made.along(2, "tensor") == 0


def test_a_plan_prints_its_groups() -> None:
    assert (
        str(plan(requests({"tensor": 2}), 4))
        == "data 2 x tensor 2 = 4 ranks\n  data: [0,2] [1,3]\n  tensor: [0,1] [2,3]"
    )


@pytest.mark.parametrize(
    ("sizes", "world", "message"),
    [
        ({"tensor": 4, "pipe": 2}, 6, r"pipe 2 x tensor 4 = 8, which does not divide 6 ranks \(6 / 8 = 0.75\)"),
        ({"data": 3, "tensor": 2}, 8, r"data 3 x tensor 2 = 6, but there are 8 ranks; data must be 8 / 2 = 4"),
        ({"tensor": 0}, 2, "at least 1 rank, got 0"),
    ],
)
def test_sizes_that_do_not_fit_show_the_arithmetic(sizes: dict[str, int], world: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(requests(sizes), world)


def test_one_axis_asked_for_twice_must_agree() -> None:
    same = AxisRequest("tensor", 2, 500)
    assert plan([same, same], 2).size("tensor") == 2
    with pytest.raises(ConfigError, match="asked for twice: size 2 at place 500, and size 4 at place 500"):
        plan([same, AxisRequest("tensor", 4, 500)], 4)


def test_one_rank_needs_no_process_group() -> None:
    mesh = Mesh(plan([], 1), "cpu")
    assert mesh.group("data") is None
    assert mesh.size("data") == 1
    assert mesh.rank("data") == 0
    with pytest.raises(CommError, match="init_distributed"):
        _ = mesh.device_mesh
    with pytest.raises(ConfigError, match=r"no axis 'dtaa'.*Did you mean 'data'"):
        mesh.axis("dtaa")


def test_a_plan_for_other_ranks_than_there_are_is_refused() -> None:
    with pytest.raises(CommError, match="planned for 2 ranks"):
        Mesh(plan([], 2), "cpu")


def four_ranks() -> dict[str, Any]:
    rank = dist.get_rank()
    mesh = Mesh(plan(requests({"tensor": 2}), 4), "cpu")
    out: dict[str, Any] = {"shape": tuple(mesh.device_mesh.shape), "coords": mesh.coords()}
    for names in (("data",), ("tensor",), ("data", "tensor"), ("expert",), ("tensor", "expert")):
        tensor = torch.tensor([10.0**rank])
        group = mesh.group(*names)
        with comm.scope("mesh"):
            comm.all_reduce(tensor, group=group)
        assert mesh.group(*names) is group
        out["+".join(names)] = (int(tensor), mesh.size(*names), mesh.rank(*names), mesh.ranks(*names))
    out["report"] = {row.group: row.calls for row in comm.report().rows}
    return out


def test_groups_hold_the_planned_ranks() -> None:
    results = run_ranks(four_ranks, 4)
    expected = {
        "data": [(0, 2), (1, 3), (0, 2), (1, 3)],
        "tensor": [(0, 1), (0, 1), (2, 3), (2, 3)],
        "data+tensor": [(0, 1, 2, 3)] * 4,
        "expert": [(0,), (1,), (2,), (3,)],
        "tensor+expert": [(0, 1), (0, 1), (2, 3), (2, 3)],
    }
    for rank, result in enumerate(results):
        assert result["shape"] == (2, 2)
        assert result["coords"] == {"data": rank // 2, "tensor": rank % 2}
        for names, groups in expected.items():
            members = groups[rank]
            assert result[names] == (sum(10**r for r in members), len(members), members.index(rank), members)
        assert result["report"] == {"data": 1, "tensor": 2, "world": 1, "self": 1}


def three_axes() -> list[int]:
    mesh = Mesh(plan(requests({"expert": 2, "tensor": 1, "pipe": 2}), 4), "cpu")
    flat = mesh.group("data", "expert")
    assert flat is not None
    return comm.get_all_ranks_from_group(flat)


def test_combined_axes_flatten() -> None:
    assert run_ranks(three_axes, 4) == [[0, 1], [0, 1], [2, 3], [2, 3]]
