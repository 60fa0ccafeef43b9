"""Plans of which rank gets which cores, on machines nobody here has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_core.errors import LaunchError
from ds_core.launch import LaunchSpec, LocalLauncher
from ds_core.launch.bind import THREADS_VARIABLE, set_memory_policy
from ds_core.launch.binding import plan_shares, threads_of_each
from ds_core.launch.topology import Cpu, Topology, cores_text


def machine(*nodes: int, threads: int = 1, quota: float | None = None) -> Topology:
    """Nodes with so many cores each; the second hardware threads count on after all first ones, as Linux does."""
    total = sum(nodes)
    homes = [node for node, count in enumerate(nodes) for _ in range(count)]
    cpus = [Cpu(homes[core], core, core + total * thread) for core in range(total) for thread in range(threads)]
    ids = frozenset(cpu.id for cpu in cpus)
    return Topology(tuple(sorted(cpus)), ids, ids, quota)


@st.composite
def machines(draw: st.DrawFn) -> Topology:
    """Any machine, with cores that are offline and cores that are not allowed."""
    nodes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    whole = machine(*nodes, threads=draw(st.integers(1, 2)), quota=draw(st.none() | st.floats(0.1, 50)))
    ids = sorted(whole.present)
    online = draw(st.sets(st.sampled_from(ids), min_size=1))
    allowed = draw(st.sets(st.sampled_from(sorted(online)), min_size=1))
    return Topology(tuple(c for c in whole.cpus if c.id in allowed), whole.present, frozenset(online), whole.quota)


@given(topology=machines(), ranks=st.integers(1, 12))
def test_every_core_has_one_rank_and_every_rank_a_core(topology: Topology, ranks: int) -> None:
    if len(topology.cpus) < ranks:
        with pytest.raises(LaunchError, match=f"needs a core for each of {ranks} ranks"):
            plan_shares(topology, ranks)
        return
    shares = plan_shares(topology, ranks)
    assert len(shares) == ranks
    assert sorted(cpu for share in shares for cpu in share.cpus) == sorted(cpu.id for cpu in topology.cpus)
    home = {cpu.id: cpu.node for cpu in topology.cpus}
    for share in shares:
        assert share.nodes == tuple(sorted({home[cpu] for cpu in share.cpus}))


@given(topology=machines(), ranks=st.integers(1, 12))
def test_threads_add_up(topology: Topology, ranks: int) -> None:
    if len(topology.cpus) < ranks:
        return
    shares = plan_shares(topology, ranks)
    total = sum(share.threads for share in shares)
    assert all(1 <= share.threads <= len(share.cpus) for share in shares)
    assert total <= max(topology.core_count, ranks)
    if topology.quota is not None:
        assert total <= max(topology.quota, ranks)
    elif topology.core_count >= ranks:
        assert total == topology.core_count


@given(topology=machines(), ranks=st.integers(1, 12))
def test_hardware_threads_of_a_core_stay_together_while_there_are_cores_enough(topology: Topology, ranks: int) -> None:
    if topology.core_count < ranks:
        return
    core = {cpu.id: cpu.core for cpu in topology.cpus}
    owners: dict[int, set[int]] = {}
    for rank, share in enumerate(plan_shares(topology, ranks)):
        for cpu in share.cpus:
            owners.setdefault(core[cpu], set()).add(rank)
    assert all(len(ranks_of) == 1 for ranks_of in owners.values())


@given(topology=machines(), ranks=st.integers(1, 12))
def test_no_rank_is_left_with_much_less_than_an_equal_part(topology: Topology, ranks: int) -> None:
    if topology.core_count < ranks:
        return
    cores = {cpu.id: cpu.core for cpu in topology.cpus}
    smallest = min(len({cores[cpu] for cpu in share.cpus}) for share in plan_shares(topology, ranks))
    assert 3 * smallest >= 2 * (topology.core_count // ranks)


@given(nodes=st.integers(1, 8), cores=st.integers(1, 16), each=st.integers(1, 4))
def test_equal_nodes_with_ranks_to_match_are_never_split(nodes: int, cores: int, each: int) -> None:
    topology = machine(*[cores] * nodes, threads=2)
    if each <= cores:
        shares = plan_shares(topology, nodes * each)
        assert [share.nodes for share in shares] == [(node,) for node in range(nodes) for _ in range(each)]
    for ranks in (count for count in range(1, nodes + 1) if nodes % count == 0):
        assert {len(share.nodes) for share in plan_shares(topology, ranks)} == {nodes // ranks}


def listed(topology: Topology, ranks: int, cores: str | None = None) -> list[str]:
    return [f"{cores_text(share.cpus)} x{share.threads}" for share in plan_shares(topology, ranks, cores)]


def test_some_machines() -> None:
    two_sockets = machine(28, 28, threads=2)
    assert listed(two_sockets, 2) == ["0-27,56-83 x28", "28-55,84-111 x28"]
    assert listed(machine(4, 4), 3) == ["0-1 x2", "2-3 x2", "4-7 x4"]
    assert listed(machine(8, 8), 5) == ["0-2 x3", "3-5 x3", "6-7 x2", "8-11 x4", "12-15 x4"]
    assert listed(machine(27, 1), 2) == ["0-13 x14", "14-27 x14"]
    assert listed(machine(2, 2, 2, 2), 2) == ["0-3 x4", "4-7 x4"]
    assert listed(machine(1, threads=2), 2) == ["0 x1", "1 x1"]
    assert listed(machine(8, quota=4.5), 2) == ["0-3 x2", "4-7 x2"]


def test_a_list_chooses_the_cores() -> None:
    assert listed(machine(32, 32), 2, "0-27,32-59") == ["0-27 x28", "32-59 x28"]
    assert listed(machine(4, threads=2), 2, "1,2,5,6") == ["1,5 x1", "2,6 x1"]


@pytest.mark.parametrize(
    ("ranks", "cores", "words"),
    [
        (
            3,
            None,
            "needs a core for each of 3 ranks on this machine, and this process may use 2 (0,2); start at most 2",
        ),
        (2, "2", "--bind-core-list 2 has 1 (2)"),
        (1, "0,9", "--bind-core-list 0,9 names core 9, which this machine does not have: it has 0-3"),
        (1, "0-2", "names core 1, which this process may not use: its affinity or cgroup allows 0,2"),
        (1, "3", "names core 3, which is offline; online are 0-2"),
        (1, "0-", "--bind-core-list takes cores like 0-27,32-59, got '0-': '0-' is neither"),
    ],
)
def test_cores_that_cannot_be_had_are_named(ranks: int, cores: str | None, words: str) -> None:
    topology = Topology((Cpu(0, 0, 0), Cpu(0, 2, 2)), frozenset(range(4)), frozenset(range(3)))
    with pytest.raises(LaunchError) as caught:
        plan_shares(topology, ranks, cores)
    assert words in str(caught.value)


def test_threads_without_binding_count_cores_and_the_quota() -> None:
    assert threads_of_each(machine(8, threads=2), 2) == 4
    assert threads_of_each(machine(8, quota=3.9), 2) == 1
    assert threads_of_each(machine(2), 5) == 1


def test_the_launcher_passes_the_list_on_and_checks_before_it_starts(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    launcher = LocalLauncher()
    words = launcher.command(LaunchSpec(str(script), nproc=1, bind_core_list="0"))
    assert words[-3:] == ["ds_core.launch.rank", "--bind-cores=0", str(script)]
    spec = LaunchSpec(str(script), nproc=1, bind_cores_to_rank=True)
    assert launcher.command(spec)[-2] == "--bind-cores"
    assert launcher.environment(spec, {})[THREADS_VARIABLE] == "share"
    assert THREADS_VARIABLE not in launcher.environment(spec, {"OMP_NUM_THREADS": "1", THREADS_VARIABLE: "share"})
    with pytest.raises(LaunchError, match="needs a core for each of 100000 ranks"):
        launcher.check(LaunchSpec(str(script), nproc=100_000, bind_cores_to_rank=True))
    with pytest.raises(LaunchError, match="needs a Python script"):
        launcher.check(LaunchSpec("true", nproc=1, no_python=True, bind_core_list="0"))


@pytest.mark.skipif(sys.platform != "linux", reason="memory policies are Linux's")
def test_a_memory_policy_is_set_or_the_reason_is_said() -> None:
    code = "from ds_core.launch.bind import set_memory_policy as f; print(f((0,))); print(f((0, 1))); print(f((1000,)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    one, several, wrong = done.stdout.splitlines()
    assert one in ("of node 0 preferred", "") or one.startswith("by first touch (set_mempolicy: ")
    assert several in ("of the nearest node", "") or several.startswith("by first touch (set_mempolicy: ")
    assert wrong == "" or wrong.startswith("by first touch (set_mempolicy: ")
    assert callable(set_memory_policy)


REPORTING = """
import json, os, threading, torch
from pathlib import Path
threads = {name: sorted(os.sched_getaffinity(int(name))) for name in os.listdir("/proc/self/task")}
Path(f"rank{os.environ['RANK']}.json").write_text(json.dumps({
    "cores": sorted(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "of threads": list(threads.values()),
    "omp": os.environ["OMP_NUM_THREADS"], "marker": os.environ.get("DS_LAUNCH_THREADS"),
}))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks need two cores")
@pytest.mark.parametrize("chosen", [None, "2"])
def test_two_ranks_have_a_half_of_the_cores_each(tmp_path: Path, chosen: str | None) -> None:
    (tmp_path / "train.py").write_text(REPORTING)
    cores = sorted(os.sched_getaffinity(0))[:2]
    environ = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environ |= {"OMP_NUM_THREADS": chosen} if chosen else {}
    words = ["--nproc", "2", "--bind-cores-to-rank", "--bind-core-list", cores_text(cores), "train.py"]
    code = "from ds_core.cli import main; raise SystemExit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *words],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["cores"] == [cores[rank]]
        assert found["of threads"] == [[cores[rank]]] * len(found["of threads"])  # those torch started as well
        assert found["threads"] == int(chosen or 1) == int(found["omp"])
        assert found["marker"] is None
        assert done.stderr.count(f"ds run: rank {rank}: cores {cores[rank]}, 1 threads, node") == 1
    assert ("(OMP_NUM_THREADS=2)" in done.stderr) is (chosen == "2")
