"""Carries out a rank's share: affinity, the number of threads, and where its memory comes from.

Done before torch is imported, for threads inherit all three when they are started.

Note [First touch]
~~~~~~~~~~~~~~~~~~
Linux takes a page from the node of the core that writes it first. A rank bound to one node therefore has its tensors
beside its cores without further ado; the policy says the same for pages that the kernel touches on the rank's behalf,
and survives libraries that move threads. Preferred, not bound: when the node is full, memory comes from another one
instead of the process being killed. A rank on several nodes is left with the local policy.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import MutableMapping

from ds_core.launch.binding import Share, plan_shares
from ds_core.launch.topology import read_topology

__all__ = ["THREADS_VARIABLE", "bind", "set_memory_policy"]

THREADS_VARIABLE = "DS_LAUNCH_THREADS"
"""Set for the ranks when the user did not choose a number of threads; a rank then starts as many as its share says."""

_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_PREFERRED, _LOCAL = 1, 4


def bind(environ: MutableMapping[str, str], core_list: str | None = None) -> Share:
    """Takes this rank's share of the machine, says so in one line on standard error, and returns it.

    Raises:
        LaunchError: as `plan_shares`.
    """
    topology = read_topology()
    rank, ranks = int(environ["LOCAL_RANK"]), int(environ["LOCAL_WORLD_SIZE"])
    share = plan_shares(topology, ranks, core_list)[rank]
    os.sched_setaffinity(0, share.cpus)
    if environ.pop(THREADS_VARIABLE, "") or "OMP_NUM_THREADS" not in environ:
        environ["OMP_NUM_THREADS"] = str(share.threads)
    memory = ""
    if len(topology.nodes) > 1:
        memory = "; memory " + (set_memory_policy(share.nodes) or "from the node of the core that touches it first")
    threads = environ["OMP_NUM_THREADS"]
    said = f" (OMP_NUM_THREADS={threads})" if threads != str(share.threads) else ""
    sys.stderr.write(f"ds run: rank {environ.get('RANK', rank)}: {share}{said}{memory}\n")
    return share


def set_memory_policy(nodes: tuple[int, ...]) -> str:
    """Prefers the memory of one node, or of whatever node a core is on; returns what was set, or why nothing was.

    Source: Linux man-pages, set_mempolicy(2). See Note [First touch].
    """
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None or sys.platform != "linux":
        return ""
    mode, mask = (_PREFERRED, 1 << nodes[0]) if len(nodes) == 1 else (_LOCAL, 0)
    words = (ctypes.c_ulong * 16)(*(mask >> 64 * index & (1 << 64) - 1 for index in range(16)))
    libc = ctypes.CDLL(None, use_errno=True)
    pointer = ctypes.byref(words) if mask else None
    if libc.syscall(ctypes.c_long(number), ctypes.c_int(mode), pointer, ctypes.c_ulong(1024 if mask else 0)) == 0:
        return f"of node {nodes[0]} preferred" if mask else "of the nearest node"
    return f"by first touch (set_mempolicy: {os.strerror(ctypes.get_errno())})"
