"""S11 and S12: swapping to a disk, and a step whose optimizer state is there, beside fio."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from harness import Context, Unavailable
from rows import Row, judge, skipped

PROGRAMS = Path(__file__).parent
NEEDS_FIO = "fio is not installed; it says what the disk can do"


def swaps(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """1 GiB between memory and the disk below this tree."""
    what = "NVMe swap, 1 GiB, {}"
    if not shutil.which("fio"):
        return [skipped("S11", what.format(job), ">= 0.95 x fio", NEEDS_FIO) for job in ("read", "write")], {}
    size = ["--bytes", str(1 << 24), "--rounds", "2"] if context.quick else ["--rounds", str(context.rounds)]
    measured = _run(context, "swap.py", size)
    rows = []
    for job in ("read", "write"):
        ours, fio = measured[job]["ours"], measured[job]["fio"]
        share = measured[job]["ours_by_fio"]
        note = f"{_range(ours)} against {_range(fio)} GB/s; above 1 is the layout of memory, not a faster engine"
        rows.append(judge("S11", what.format(job), ">= 0.95 x fio", f"{share:.2f} x", share >= 0.95, note))
    return rows, measured


def steps(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """One rank, optimizer state on disk four times what its buffers hold."""
    what = "optimizer state on disk, 4 x the memory it may take: time of a step"
    target = "<= 1.15 x bytes / fio bandwidth"
    if not shutil.which("fio"):
        return [skipped("S12", what, target, NEEDS_FIO)], {}
    size = ["--params", "1000000", "--rounds", "2"] if context.quick else ["--rounds", str(context.rounds)]
    measured = _run(context, "offload.py", size)
    ratio = float(measured["step_by_bound"])
    held = f"state is {measured['state_by_buffers']} x the buffers"
    note = f"{_range(measured['step'])} s against {measured['bound']:.2f} s to read and to write the bytes; {held}"
    return [judge("S12", what, target, f"{ratio:.2f} x", ratio <= 1.15, note)], measured


def _run(context: Context, program: str, options: list[str]) -> dict[str, Any]:
    printed = context.ours.run([str(PROGRAMS / program), str(context.scratch), *options], timeout_s=1800)
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if not lines:
        raise Unavailable(f"{program} printed no result")
    found: dict[str, Any] = json.loads(lines[-1])
    found.pop("machine", None)
    return found


def _range(sample: dict[str, Any]) -> str:
    return f"{sample['median']:.2f} ({sample['min']:.2f} to {sample['max']:.2f})"
