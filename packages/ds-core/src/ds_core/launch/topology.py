"""The cores of this machine: which may be used, which share a core or a memory node, and how much time they get."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cpu", "Topology", "cores_text", "parse_cores", "read_topology"]

_SYSTEM = Path("/sys/devices/system")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, order=True)
class Cpu:
    """One hardware thread.

    Args:
        node: memory node it is next to.
        core: lowest id among the hardware threads of its core.
        id: as the kernel counts.
    """

    node: int
    core: int
    id: int


@dataclass(frozen=True, slots=True)
class Topology:
    """What one process may run on.

    Args:
        cpus: online, and allowed by affinity and cgroup.
        present: ids of all hardware threads of the machine, offline ones too.
        online: ids of those that are switched on.
        quota: CPUs' worth of time the cgroup grants; None without a limit.
    """

    cpus: tuple[Cpu, ...]
    present: frozenset[int]
    online: frozenset[int]
    quota: float | None = None

    @property
    def nodes(self) -> tuple[int, ...]:
        """Memory nodes with a usable core."""
        return tuple(sorted({cpu.node for cpu in self.cpus}))

    @property
    def core_count(self) -> int:
        """Cores with a usable hardware thread."""
        return len({cpu.core for cpu in self.cpus})


def read_topology(
    allowed: Iterable[int] | None = None, *, system: Path = _SYSTEM, cgroup: Path = _CGROUP, own: Path = _OWN_CGROUP
) -> Topology:
    """The topology as Linux tells it; every CPU a core of its own on one node where the files are missing.

    Args:
        allowed: ids this process may run on; its affinity when None.
        system: replaceable for tests.
        cgroup: replaceable for tests.
        own: says which cgroup is this process's; replaceable for tests.
    """
    if allowed is None:
        allowed = os.sched_getaffinity(0)
    usable = frozenset(allowed)
    online = _list_in(system / "cpu" / "online") or usable
    present = _list_in(system / "cpu" / "present") or online
    nodes = {
        cpu: int(folder.name.removeprefix("node"))
        for folder in (system / "node").glob("node[0-9]*")
        for cpu in _list_in(folder / "cpulist")
    }
    cpus = []
    for cpu in sorted(usable & online):
        folder = system / "cpu" / f"cpu{cpu}" / "topology"
        siblings = _list_in(folder / "core_cpus_list") or _list_in(folder / "thread_siblings_list") or {cpu}
        cpus.append(Cpu(nodes.get(cpu, 0), min(siblings), cpu))
    return Topology(tuple(sorted(cpus)), present, online, _quota(cgroup, own))


def parse_cores(text: str) -> list[int]:
    """Ids in a list like ``0-27,32-59``, in its order.

    Raises:
        ValueError: it is no such list, or names an id twice.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"{part.strip()!r} is neither a number nor a range like 0-27")
        found += range(int(first), int(last or first) + 1)
    twice = sorted({cpu for cpu in found if found.count(cpu) > 1})
    if twice:
        raise ValueError(f"core {twice[0]} is named twice")
    return found


def cores_text(cpus: Iterable[int]) -> str:
    """The shortest list that `parse_cores` reads as these ids."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _list_in(path: Path) -> frozenset[int]:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return frozenset()
    return frozenset(parse_cores(text)) if text else frozenset()  # a node without CPUs has an empty list


def _quota(cgroup: Path, own: Path) -> float | None:
    """CPUs' worth of time: the least of version 2's ``cpu.max`` from here up, else what version 1's files say."""
    folder = cgroup
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("0::/"):
            folder = cgroup / line.removeprefix("0::/")
    found = []
    for at in (folder, *folder.parents):
        if at == cgroup.parent:
            break
        found += _granted(at / "cpu.max")
    if not found:
        found = _granted(cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us")
    return min(found, default=None)


def _granted(*paths: Path) -> list[float]:
    try:
        quota, period = " ".join(path.read_text(encoding="ascii") for path in paths).split()
    except (OSError, ValueError):
        return []
    return [int(quota) / int(period)] if quota.isdigit() and int(period) > 0 else []
