"""Cores by memory node, and a ``numactl`` call that binds a rank to its share."""

from __future__ import annotations

import shutil

from ds_core.errors import LaunchError
from ds_core.launch.binding import plan_shares
from ds_core.launch.topology import read_topology

__all__ = ["get_numa_cores", "get_numactl_cmd"]


def get_numa_cores() -> list[list[int]]:
    """Usable CPUs of each memory node."""
    found = read_topology()
    return [[cpu.id for cpu in found.cpus if cpu.node == node] for node in found.nodes]


def get_numactl_cmd(bind_core_list: str | None, num_local_procs: int, local_rank: int) -> tuple[int, list[str]]:
    """How many CPUs a rank gets, and the words to put before its command.

    Raises:
        LaunchError: numactl is not installed, or the cores do not suffice.
    """
    if shutil.which("numactl") is None:
        raise LaunchError("numactl is not installed; install it, or use --bind-cores-to-rank, which needs none")
    share = plan_shares(read_topology(), num_local_procs, bind_core_list)[local_rank]
    cpus = sorted(share.cpus)
    words = ["numactl", "-C", ",".join(map(str, cpus))]
    if share.nodes:
        words += ["-m", ",".join(map(str, share.nodes))]
    return len(cpus), words
