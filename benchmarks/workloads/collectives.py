"""Times of collectives between the ranks of one machine: shared memory and gloo in turns, and copies beside them.

    python benchmarks/workloads/collectives.py RANKS [--megabytes 1 16 128] [--rounds N]

Starts RANKS processes of one thread. In each round every size and collective runs once on either backend, after a
barrier, and every rank copies once between two buffers that no cache holds, all ranks at the same time. Prints one JSON
line: seconds of the slowest rank by round, and bytes a rank moves a second (read and written) in a copy.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

COPY_BYTES = 128 * 2**20


def calls(numel: int, group: dist.ProcessGroup) -> dict[str, Callable[[], Any]]:
    """The collectives over tensors of `numel` float32; of `numel / ranks` where a rank has a part."""
    part = numel // group.size()
    whole, out, piece = torch.ones(numel), torch.empty(numel), torch.ones(part)
    return {
        "all_reduce": lambda: dist.all_reduce(whole, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(piece, whole, group=group),
        "all_gather": lambda: dist.all_gather_into_tensor(out, piece, group),
    }


def slowest(seconds: float) -> float:
    """Of all ranks."""
    tensor = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    call()
    return slowest(time.perf_counter() - start)


def work(megabytes: list[int], rounds: int) -> dict[str, Any]:
    """What one rank measures; equal on all."""
    torch.set_num_threads(1)
    from ds_core import comm

    comm.init_distributed("shm", verbose=False)
    groups = {"shm": dist.group.WORLD, "gloo": dist.new_group(backend="gloo")}
    source, target = torch.ones(COPY_BYTES // 4), torch.empty(COPY_BYTES // 4)
    todo = {
        (f"{name} {size} MB", backend): call
        for size in megabytes
        for backend, group in groups.items()
        for name, call in calls(size * 2**20 // 4, group).items()
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    copies = []
    for number in range(rounds + 1):
        copies.append(timed(lambda: target.copy_(source)))
        for (name, backend), call in todo.items():
            taken = timed(call)
            if number:  # the first round warms up
                seconds.setdefault(name, {}).setdefault(backend, []).append(taken)
    return {"seconds": seconds, "copy_bytes_per_s": [2 * COPY_BYTES / each for each in copies[1:]]}


def launch(ranks: int, arguments: list[str]) -> None:
    """The ranks, as processes of this program; the first one prints."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environ = {**os.environ, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    environ |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments], env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(ranks)
    ]
    codes = [each.wait() for each in started]
    if any(codes):
        sys.exit(f"ranks ended with {codes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ranks", type=int)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--rounds", type=int, default=7)
    settings = parser.parse_args()
    if "RANK" not in os.environ:
        launch(settings.ranks, sys.argv[1:])
        return
    warnings.simplefilter("ignore", FutureWarning)
    found = work(settings.megabytes, settings.rounds)
    if os.environ["RANK"] == "0":
        print(json.dumps({"ranks": settings.ranks, **found}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
