"""S8 and S9 at every instruction-set level that this machine runs, chosen by DS_CPU_ISA."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import adam
from harness import Context, Sample, Worker, take_turns
from rows import Row, shown


def by_level(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """Adam alone, and the whole update, a process for each level."""
    numel = adam.QUICK_NUMEL if context.quick else adam.NUMEL
    rows: list[Row] = []
    measured: dict[str, Any] = {"numel": numel, "threads": adam.THREADS, "jobs": {}}
    for id, job, what in (("S8", "adam", "CPU Adam"), ("S9", "update16", "the whole update from bf16 gradients")):
        samples = _measure(context, job, numel)
        measured["jobs"][job] = {level: sample.to_json() for level, sample in samples.items()}
        best = min(sample.median for sample in samples.values())
        for level, sample in samples.items():
            value = sample.text("GB/s", lambda s: adam.BYTES_A_PARAMETER * numel / s / 1e9)
            if job != "adam":
                value = sample.text("ms", lambda s: s * 1e3)
            note = f"{best / sample.median:.2f} x the fastest level"
            rows.append(shown(id, f"{what}, {numel / 1e6:g} M parameters, level {level}", value, note))
    return rows, measured


def levels(context: Context) -> list[str]:
    """Those our wheel can run here, best first."""
    program = "import json; from ds_accel_cpu.isa import usable_levels; print(json.dumps(usable_levels()))"
    found: list[str] = json.loads(context.ours.run(["-c", program], timeout_s=60))
    return found


def _measure(context: Context, job: str, numel: int) -> dict[str, Sample]:
    with ExitStack() as stack:
        turns: dict[str, Callable[[], float]] = {}
        for level in levels(context):
            arguments = ["adam.py", "ours", job, str(numel), "--threads", str(adam.THREADS)]
            environ = {"OMP_NUM_THREADS": str(adam.THREADS), "DS_CPU_ISA": level}
            worker = Worker(context.ours, *arguments, scratch=context.scratch, timeout_s=1800, **environ)
            turns[level] = _turn(stack.enter_context(worker))
        for turn in turns.values():
            turn()
        return take_turns(turns, context.rounds, context.say)


def _turn(worker: Worker) -> Callable[[], float]:
    return lambda: float(worker()["s"])
