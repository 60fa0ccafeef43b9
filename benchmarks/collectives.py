"""S10: collectives between the ranks of one machine, beside gloo and beside copies of memory."""

from __future__ import annotations

import json
from typing import Any

from harness import WORKLOADS, Context, Sample, Unavailable
from rows import Row, judge

RANKS = (2, 4)
MEGABYTES = (1, 16, 128)
TARGETS = {1: 2.0, 16: 4.0, 128: 4.0}
BOUND = 0.6


def least_bytes(name: str, whole: int, ranks: int) -> float:
    """Bytes a rank must read and write: its input once and its output once.

    Args:
        name: of the collective.
        whole: bytes of the tensor that is reduced, or that the ranks' parts make.
        ranks: how many take part.
    """
    part = whole / ranks
    return {"all_reduce": whole + whole, "reduce_scatter": whole + part, "all_gather": part + whole}[name]


def exchange(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """Medians over the rounds; ratios are of medians."""
    rows: list[Row] = []
    measured: dict[str, Any] = {}
    sizes = (1,) if context.quick else MEGABYTES
    for ranks in RANKS:
        found = _run(context, ranks, sizes)
        copy = Sample(tuple(found["copy_bytes_per_s"]))
        here = measured[str(ranks)] = {"copy_bytes_per_s": copy.to_json(), "calls": {}}
        for name, taken in found["seconds"].items():
            op, size, _ = name.split()
            ours, gloo = Sample(tuple(taken["shm"])), Sample(tuple(taken["gloo"]))
            whole, faster = int(size) * 2**20, gloo.median / ours.median
            share = least_bytes(op, whole, ranks) / copy.median / ours.median
            here["calls"][name] = {"shm": ours.to_json(), "gloo": gloo.to_json(), "by_gloo": faster, "by_bound": share}
            rows.append(_row(ranks, name, faster, share, TARGETS[int(size)], ours, gloo))
    return rows, measured


def _row(ranks: int, name: str, faster: float, share: float, target: float, ours: Sample, gloo: Sample) -> Row:
    what = f"{name.replace('_', '-')}, {ranks} ranks"
    value = f"{faster:.1f} x gloo, {share:.2f} x the bound"
    note = f"{ours.text('ms', lambda s: 1e3 * s)} against {gloo.text('ms', lambda s: 1e3 * s)}"
    aim = f">= {target:g} x gloo, >= {BOUND:g} x the memory-copy bound"
    return judge("S10", what, aim, value, faster >= target and share >= BOUND, note)


def _run(context: Context, ranks: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    options = ["--rounds", str(context.rounds), "--megabytes", *map(str, sizes)]
    printed = context.ours.run([str(WORKLOADS / "collectives.py"), str(ranks), *options], timeout_s=1800)
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if not lines:
        raise Unavailable("collectives.py printed no result")
    found: dict[str, Any] = json.loads(lines[-1])
    return found
