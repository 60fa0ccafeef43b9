"""Which ranks share memory: the key of a host, and the plan of a group over hosts. Pure but for `host_key`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Plan", "host_key", "plan"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")


def host_key() -> str:
    """Equal for processes that can share a segment: one running kernel, one network namespace, one user.

    The network namespace is in it because the segment is handed over on a socket without a name in a file system, and
    such names belong to it.
    """
    return f"{_BOOT_ID.read_text().strip()}/{_NETWORK.stat().st_ino}/{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Who of a group is where, from one rank's side.

    Attributes:
        hosts: ranks of the group by host, hosts in the order of their first ranks.
        host: this rank's place in `hosts`.
        lane: this rank's place among those of its host.
    """

    hosts: tuple[tuple[int, ...], ...]
    host: int
    lane: int

    @property
    def local(self) -> tuple[int, ...]:
        """Ranks of this rank's host."""
        return self.hosts[self.host]

    @property
    def is_one_host(self) -> bool:
        """Every rank of the group is here."""
        return len(self.hosts) == 1

    @property
    def is_even(self) -> bool:
        """Every host holds as many ranks, so that ranks with equal lanes form groups across hosts."""
        return len({len(host) for host in self.hosts}) == 1

    def lane_of(self, rank: int) -> int:
        """A rank's place among those of its host."""
        return next(host.index(rank) for host in self.hosts if rank in host)

    def host_of(self, rank: int) -> int:
        """The number of a rank's host."""
        return next(number for number, host in enumerate(self.hosts) if rank in host)


def plan(keys: Sequence[str], rank: int) -> Plan:
    """The plan for `rank`, given the host keys of all ranks in rank order."""
    order = list(dict.fromkeys(keys))
    hosts = tuple(tuple(each for each, key in enumerate(keys) if key == host) for host in order)
    number = order.index(keys[rank])
    return Plan(hosts, number, hosts[number].index(rank))
