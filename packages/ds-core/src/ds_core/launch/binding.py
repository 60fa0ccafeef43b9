"""Which cores each rank of a machine runs on, how many threads it starts, and whose memory it takes: a pure plan.

Note [Shares]
~~~~~~~~~~~~~
A share is whole cores, with all their usable hardware threads and one thread of computation each: two threads of
computation on one core have one vector unit between them. Where there are fewer cores than ranks, hardware threads are
shared out in their place. Shares keep to memory nodes: with at least as many ranks as nodes every node serves ranks of
its own, else every rank has nodes of its own. The slowest rank sets the pace, so where keeping to nodes would leave one
with less than two thirds of an equal part, the cores are dealt equally, in the order of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ds_core.errors import LaunchError
from ds_core.launch.topology import Cpu, Topology, cores_text, parse_cores

__all__ = ["Share", "plan_shares", "threads_of_each"]


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank gets.

    Args:
        cpus: hardware threads to run on.
        threads: threads of computation, so that those of all ranks fit the cores and the time there is.
        nodes: memory nodes of the cores.
    """

    cpus: tuple[int, ...]
    threads: int
    nodes: tuple[int, ...]

    def __str__(self) -> str:
        """Cores, threads and nodes, for a line of a log."""
        many = "s" if len(self.nodes) > 1 else ""
        return f"cores {cores_text(self.cpus)}, {self.threads} threads, node{many} {cores_text(self.nodes)}"


def plan_shares(topology: Topology, ranks: int, core_list: str | None = None) -> tuple[Share, ...]:
    """One share for each of `ranks`; together they use every core, and no two the same. See Note [Shares].

    Args:
        topology: what the ranks may run on.
        ranks: ranks on this machine.
        core_list: ids to use, like ``0-27,32-59``; all usable ones when None.

    Raises:
        LaunchError: the list is none or names a core that cannot be used, or there are fewer cores than ranks.
    """
    if core_list is not None:
        topology = _only(topology, core_list)
    if len(topology.cpus) < ranks:
        what = f"--bind-core-list {core_list} has" if core_list is not None else "this process may use"
        raise LaunchError(
            f"--bind-cores-to-rank needs a core for each of {ranks} ranks on this machine, and {what}"
            f" {len(topology.cpus)} ({cores_text(cpu.id for cpu in topology.cpus)}); start at most"
            f" {len(topology.cpus)} ranks (--nproc), give them more cores, or do without binding"
        )
    cores: dict[int, list[Cpu]] = {}
    for cpu in sorted(topology.cpus):
        cores.setdefault(cpu.core if topology.core_count >= ranks else cpu.id, []).append(cpu)
    units = list(cores.values())
    sizes = _sizes([unit[0].node for unit in units], ranks)
    most_threads = max(1, int(topology.quota / ranks)) if topology.quota is not None else len(units)
    shares, at = [], 0
    for size in sizes:
        mine = [cpu for unit in units[at : at + size] for cpu in unit]
        nodes = tuple(sorted({cpu.node for cpu in mine}))
        shares.append(Share(tuple(sorted(cpu.id for cpu in mine)), min(size, most_threads), nodes))
        at += size
    return tuple(shares)


def threads_of_each(topology: Topology, ranks: int) -> int:
    """Threads for each rank where none is bound: of all ranks together no more than cores, or than the quota."""
    room = topology.core_count if topology.quota is None else min(topology.core_count, int(topology.quota))
    return max(1, room // ranks)


def _only(topology: Topology, core_list: str) -> Topology:
    try:
        asked = parse_cores(core_list)
    except ValueError as error:
        raise LaunchError(f"--bind-core-list takes cores like 0-27,32-59, got {core_list!r}: {error}") from error
    usable = {cpu.id for cpu in topology.cpus}
    for cpu in asked:
        if cpu in usable:
            continue
        if cpu not in topology.present:
            why = f"which this machine does not have: it has {cores_text(topology.present)}"
        elif cpu not in topology.online:
            why = f"which is offline; online are {cores_text(topology.online)}"
        else:
            why = f"which this process may not use: its affinity or cgroup allows {cores_text(usable)}"
        raise LaunchError(f"--bind-core-list {core_list} names core {cpu}, {why}")
    return replace(topology, cpus=tuple(cpu for cpu in topology.cpus if cpu.id in asked))


def _sizes(nodes: Sequence[int], ranks: int) -> list[int]:
    """How many units, which come in the order of `nodes`, each rank takes."""
    counts = [nodes.count(node) for node in dict.fromkeys(nodes)]
    equal = _parts(len(nodes), ranks)
    kept = _within_nodes(counts, ranks) if ranks >= len(counts) else _of_whole_nodes(counts, ranks)
    return kept if 3 * min(kept) >= 2 * min(equal) else equal


def _within_nodes(counts: Sequence[int], ranks: int) -> list[int]:
    """Every node gets a rank; each other rank goes where it leaves the largest shares."""
    served = [1] * len(counts)
    for _ in range(ranks - len(counts)):
        best = max(range(len(counts)), key=lambda node: (counts[node] / (served[node] + 1), -node))
        served[best] += 1
    return [size for count, here in zip(counts, served, strict=True) for size in _parts(count, here)]


def _of_whole_nodes(counts: Sequence[int], ranks: int) -> list[int]:
    """Neighbouring nodes for each rank, cut where the boundary is nearest to an equal part."""
    sizes, first = [], 0
    total, done = sum(counts), 0
    for rank in range(1, ranks + 1):
        last = len(counts) - (ranks - rank)  # every rank after this one needs a node
        goal = total * rank / ranks
        ends = range(first + 1, last + 1) if rank < ranks else [last]
        end = min(ends, key=lambda end: (abs(done + sum(counts[first:end]) - goal), end))
        sizes.append(sum(counts[first:end]))
        done += sizes[-1]
        first = end
    return sizes


def _parts(count: int, parts: int) -> list[int]:
    """`count` in nearly equal parts, larger ones first."""
    size, extra = divmod(count, parts)
    return [size + (index < extra) for index in range(parts)]
