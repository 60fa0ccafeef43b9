"""Kernels and the machine's limits, one line each: roofline.py LIBRARY. Answers one order with everything.

LIBRARY is roofs.c, compiled. Limits are the best of all rounds; kernels and their peers take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from protocol import Channel

channel = Channel()

import torch  # noqa: E402  (what it prints belongs in the log)
from kernel_points import KernelPoint, families  # noqa: E402

TRAFFIC = ("read", "write", "copy", "triad")
ARITHMETIC = ("fp32", "bf16", "int8")
BYTES, QUICK_BYTES = 1 << 28, 1 << 20
AT_LEAST_S = 0.03
"""A timed run repeats the call until it takes about this long."""


def timed(call: Callable[[], object], repeats: int) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def repeats_of(call: Callable[[], object], quick: bool) -> int:
    """How often a timed run calls; the first calls warm up."""
    call()
    return 1 if quick else max(1, min(10_000, int(AT_LEAST_S / max(timed(call, 1), 1e-7))))


class Roofs:
    """The limits: work a second, the best so far."""

    def __init__(self, library: str, quick: bool) -> None:
        self._library = ctypes.CDLL(library)
        self._rounds = ctypes.c_int64(10_000 if quick else 20_000_000)
        self.best: dict[str, float] = {}
        for name in (*(f"traffic_{name}" for name in TRAFFIC), *(f"arithmetic_{name}" for name in ARITHMETIC)):
            getattr(self._library, name).restype = ctypes.c_int64
        if self._library.prepare(ctypes.c_int64(QUICK_BYTES if quick else BYTES)):
            sys.exit("MemoryError: the arrays do not fit")

    def measure(self) -> None:
        """Once more."""
        for name in TRAFFIC:
            self._take(name, getattr(self._library, f"traffic_{name}"))
        for name in ARITHMETIC:
            self._take(name, getattr(self._library, f"arithmetic_{name}"), self._rounds)

    def _take(self, name: str, function: Any, *arguments: Any) -> None:
        began = time.perf_counter()
        done = function(*arguments)
        self.best[name] = max(self.best.get(name, 0.0), done / (time.perf_counter() - began))


def measure(point: KernelPoint, rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds of the kernel and of its peer, in turns."""
    calls = {"ours": point.run} | ({"peer": point.peer} if point.peer is not None else {})
    repeats = {name: repeats_of(call, quick) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls) if index % 2 else reversed(calls):
            seconds[name].append(timed(calls[name], repeats[name]))
    return {
        "name": point.name,
        "bytes": point.bytes,
        "flops": point.flops,
        "unit": point.unit,
        "peer_name": point.peer_name,
        "s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="points whose name holds this")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    from ds_accel_cpu.isa import library

    channel.say(implementation=library().target)
    for _ in channel.orders():
        roofs = Roofs(asked.library, asked.quick)
        roofs.measure()
        kernels = []
        for family, points in families().items():
            for point in points(asked.quick):
                if asked.only in point.name:
                    kernels.append({"family": family, **measure(point, asked.rounds, asked.quick)})
            roofs.measure()
        channel.say(roofs=roofs.best, kernels=kernels, level=library().target, threads=asked.threads)


main()
