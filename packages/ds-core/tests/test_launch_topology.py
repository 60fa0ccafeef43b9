"""Topologies as Linux writes them down, from files made for the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_core.launch.topology import Cpu, cores_text, parse_cores, read_topology


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two nodes of two cores with two hardware threads each; CPU 7 is offline; a third node has memory only."""
    system = tmp_path / "system"
    write(system / "cpu" / "present", "0-7")
    write(system / "cpu" / "online", "0-6")
    for cpu in range(7):
        siblings = f"{cpu % 4},{cpu % 4 + 4}" if cpu % 4 != 3 else "3"
        write(system / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list", siblings)
    for node, cpus in enumerate(("0-1,4-5", "2-3,6", "")):
        write(system / "node" / f"node{node}" / "cpulist", cpus)
    return system


def test_cores_nodes_and_siblings(machine: Path, tmp_path: Path) -> None:
    found = read_topology(range(8), system=machine, cgroup=tmp_path, own=tmp_path)
    assert found.cpus == (
        Cpu(0, 0, 0),
        Cpu(0, 0, 4),
        Cpu(0, 1, 1),
        Cpu(0, 1, 5),
        Cpu(1, 2, 2),
        Cpu(1, 2, 6),
        Cpu(1, 3, 3),
    )
    assert (found.core_count, found.nodes, found.quota) == (4, (0, 1), None)
    assert (found.present, found.online) == (frozenset(range(8)), frozenset(range(7)))


def test_affinity_limits_it(machine: Path, tmp_path: Path) -> None:
    assert read_topology({2, 6, 5}, system=machine, cgroup=tmp_path, own=tmp_path).cpus == (
        Cpu(0, 1, 5),
        Cpu(1, 2, 2),
        Cpu(1, 2, 6),
    )


def test_newer_names_of_the_sibling_list_are_preferred(machine: Path, tmp_path: Path) -> None:
    write(machine / "cpu" / "cpu0" / "topology" / "core_cpus_list", "0")
    assert Cpu(0, 0, 0) in read_topology({0, 4}, system=machine, cgroup=tmp_path, own=tmp_path).cpus
    assert read_topology({0, 1}, system=machine, cgroup=tmp_path, own=tmp_path).core_count == 2


def test_without_any_file_every_cpu_is_a_core_of_node_0(tmp_path: Path) -> None:
    found = read_topology({1, 3}, system=tmp_path, cgroup=tmp_path, own=tmp_path)
    assert found.cpus == (Cpu(0, 1, 1), Cpu(0, 3, 3))
    assert found.present == {1, 3}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu.max": "what"}, None),
    ],
)
def test_what_the_cgroup_grants(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    write(tmp_path / "own", "0::/a/b")
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    assert read_topology({0}, system=tmp_path, cgroup=tmp_path / "cgroup", own=tmp_path / "own").quota == quota


def test_this_machine_is_read() -> None:
    found = read_topology()
    assert {cpu.id for cpu in found.cpus} == os.sched_getaffinity(0)
    assert found.online <= found.present
    assert 1 <= found.core_count <= len(found.cpus)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_of_cores_come_back(cpus: set[int]) -> None:
    assert parse_cores(cores_text(cpus)) == sorted(cpus)


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "1-", "-1", "1,1", "0-4,3", "0x1"])
def test_what_is_no_list_of_cores(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a number nor a range|twice"):
        parse_cores(text)
