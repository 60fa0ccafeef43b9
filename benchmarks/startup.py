"""S1 and S2: how long an import takes, and how long it takes from an empty cache to the first optimizer step."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import WORKLOADS, Context, Unavailable, Worker, alone, take_turns
from rows import Row, judge, shown, skipped

IMPORT_ROUNDS = 9
COMPILERS = ("c++", "g++", "clang++", "cc", "gcc", "clang", "nvcc", "hipcc", "icx", "icpx")
BUILDERS = ("ninja", "make", "cmake")


def imports(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """S1: the import alone, above torch, and with the engine and every plugin."""
    cases = {
        "ds_core, without torch": ("ours", ["ds_core"]),
        "ds_core, above torch": ("ours", ["ds_core", "above-torch"]),
        "ds_core with its engine and plugins, above torch": ("ours", ["ds_core", "above-torch", "engine"]),
        "deepspeed, above torch": ("deepspeed", ["deepspeed", "above-torch"]),
    }
    missing = ""
    turns: dict[str, Callable[[], float]] = {}
    for name, (engine, arguments) in cases.items():
        try:
            turns[name] = _import_turn(context, engine, arguments)
            turns[name]()  # once for nothing: bytecode and the page cache
        except Unavailable as reason:
            turns.pop(name, None)
            if engine == "ours":
                raise
            missing = str(reason)
    samples = take_turns(turns, 2 if context.quick else max(IMPORT_ROUNDS, context.rounds), context.say)
    wheels = context.ours.run(["-c", _WHEELS], timeout_s=60).strip()
    rows = []
    for name, what in (("ds_core, without torch", "without torch"), ("ds_core, above torch", "above `import torch`")):
        sample = samples[name]
        rows.append(
            judge(
                "S1",
                f"`import ds_core` {what}",
                "<= 0.15 s",
                sample.text("s"),
                sample.median <= 0.15,
                f"wheels installed: {wheels}",
            )
        )
    extra = samples["ds_core with its engine and plugins, above torch"]
    rows.append(shown("S1", "the same with the engine and every plugin's module loaded", extra.text("s")))
    if missing:
        rows.append(skipped("S1", "`import deepspeed` above `import torch`", "", missing))
    else:
        rows.append(shown("S1", "`import deepspeed` above `import torch`", samples["deepspeed, above torch"].text("s")))
    return rows, {name: sample.to_json() for name, sample in samples.items()}


_WHEELS = (
    "from importlib.metadata import entry_points as e; "
    "print(', '.join(sorted({'ds-core', *(p.dist.name for p in e(group='ds_core.plugins'))})))"
)


def _import_turn(context: Context, engine: str, arguments: list[str]) -> Callable[[], float]:
    side = context.side(engine)
    environ = {"DS_ACCELERATOR": "cpu"} if engine == "deepspeed" else {}
    script = str(WORKLOADS / "import_time.py")
    # deepspeed may print a line of its own before the figure.
    return lambda: float(side.run([script, *arguments], timeout_s=300, **environ).split()[-1])


def first_steps(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """S2: process start to first optimizer step with every cache empty, and the compilers that run on the way."""
    names = ("ours", "deepspeed")
    missing = ""
    calls: dict[str, list[dict[str, int]]] = {name: [] for name in names}
    optimizers: dict[str, str] = {}
    turns: dict[str, Callable[[], float]] = {}
    for name in names:
        try:
            context.side(name)
            if name == "ours":  # once for nothing: the first reads files from disk; deepspeed was imported before
                _first_step(context, name, [], optimizers)
            turns[name] = _first_step_turn(context, name, calls[name], optimizers)
        except Unavailable as reason:
            if name == "ours":
                raise
            missing = str(reason)
    rounds = 1 if context.quick else context.rounds
    try:
        samples = take_turns(turns, rounds, context.say)
    except Unavailable as reason:
        missing = str(reason)
        calls["ours"].clear()
        samples = take_turns({"ours": turns["ours"]}, rounds, context.say)
    compilers = max(sum(count[name] for name in COMPILERS) for count in calls["ours"])
    rows = [
        judge(
            "S2",
            "compilers started from process start to first optimizer step, empty caches",
            "none",
            str(compilers) if compilers else "none",
            compilers == 0,
            f"optimizer: `{optimizers['ours']}`",
        )
    ]
    what, target = "process start to first optimizer step, empty caches", "<= 1/5 of deepspeed's with its CPU Adam"
    if missing:
        rows.append(skipped("S2", what, target, f"{missing}; ours took {samples['ours'].text('s')}"))
    else:
        ours, theirs = samples["ours"].median, samples["deepspeed"].median
        built = max(sum(count[name] for name in COMPILERS) for count in calls["deepspeed"])
        times = f"{samples['ours'].text('s')} against {samples['deepspeed'].text('s')}"
        note = f"{times}; deepspeed started {built} compilers; its optimizer: `{optimizers['deepspeed']}`"
        rows.append(judge("S2", what, target, f"1/{theirs / ours:.1f}", ours <= theirs / 5, note))
    measured: dict[str, Any] = {name: sample.to_json() for name, sample in samples.items()}
    for name in samples:
        measured[name]["programs_started"] = calls[name]
        measured[name]["optimizer"] = optimizers[name]
    return rows, measured


def _first_step_turn(
    context: Context, name: str, calls: list[dict[str, int]], optimizers: dict[str, str]
) -> Callable[[], float]:
    return lambda: _first_step(context, name, calls, optimizers)


def _first_step(context: Context, name: str, calls: list[dict[str, int]], optimizers: dict[str, str]) -> float:
    """Seconds of one start in a home that holds nothing."""
    side = context.side(name)
    home = Path(tempfile.mkdtemp(prefix="home-", dir=context.scratch))
    log = home / "started.log"
    log.touch()
    watched = _watch_programs(home / "watched", log, side.environ["PATH"])
    environ = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TORCH_EXTENSIONS_DIR": str(home / "extensions"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
        "TRITON_CACHE_DIR": str(home / "triton"),
        "TMPDIR": str(home),
        "PATH": os.pathsep.join([str(watched), side.environ["PATH"]]),
    }
    if name == "deepspeed":
        environ["DS_ACCELERATOR"] = "cpu"
    try:
        began = time.perf_counter()
        with Worker(side, "first_step.py", name, scratch=context.scratch, timeout_s=1800, **alone(**environ)) as worker:
            took_s = time.perf_counter() - began
            if not worker.ready["moved"]:
                raise Unavailable(f"the first step of {name} changed nothing")
            optimizers[name] = worker.ready["optimizer"]
        started = log.read_text().split()
        calls.append({program: started.count(program) for program in (*COMPILERS, *BUILDERS)})
        return took_s
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _watch_programs(folder: Path, log: Path, path: str) -> Path:
    """A folder of compilers and builders that note that they were called and then are the real ones."""
    folder.mkdir()
    for name in (*COMPILERS, *BUILDERS):
        real = shutil.which(name, path=path)
        if real is None:
            continue
        script = folder / name
        script.write_text(f'#!/bin/sh\necho {name} >> "{log}"\nexec "{real}" "$@"\n')
        script.chmod(0o755)
    return folder
