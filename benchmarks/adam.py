"""S8 and S9: Adam over 50 million parameters, alone and with everything around it, against peers and the machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import WORKLOADS, Context, Sample, Unavailable, Worker, last_words, take_turns
from rows import Row, judge, shown, skipped

NUMEL, QUICK_NUMEL = 50_000_000, 200_000
THREADS = 2
BYTES_A_PARAMETER = 28
"""Read parameter, gradient and two moments; write parameter and two moments; four bytes each."""


def adam_step(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """S8."""
    engines, why = _measure(context, "adam", ("foreach", "fused", "deepspeed", "ours", "bound"))
    samples = engines["samples"]
    ours = samples["ours"]
    numel = engines["numel"]
    what = f"CPU Adam, {numel / 1e6:g} M fp32 parameters, {THREADS} threads"
    rows = []
    for peer, name in (("fused", "torch fused"), ("deepspeed", "deepspeed")):
        target = f">= 1.0 x {name}"
        if peer in samples:
            ratio = samples[peer].median / ours.median
            note = f"{_rate(ours, numel)} against {_rate(samples[peer], numel)}"
            rows.append(judge("S8", what, target, f"{ratio:.2f} x", ratio >= 1.0, note))
        else:
            rows.append(skipped("S8", what, target, why[peer]))
    target = ">= 0.95 x the machine's read+write bandwidth"
    if "bound" in samples:
        ratio = samples["bound"].median / ours.median
        note = f"{_rate(ours, numel)} of {_rate(samples['bound'], numel)}"
        rows.append(judge("S8", what, target, f"{ratio:.2f} x", ratio >= 0.95, note))
    else:
        rows.append(skipped("S8", what, target, why["bound"]))
    rows.append(shown("S8", "torch foreach, for comparison", _rate(samples["foreach"], numel)))
    rows += _disagreement("S8", engines)
    return rows, _to_json(engines)


def whole_update(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """S9, from float32 gradients, and shown from bfloat16 ones."""
    rows: list[Row] = []
    measured: dict[str, Any] = {}
    for job, kind in (("update", "fp32"), ("update16", "bf16")):
        engines, why = _measure(context, job, ("fused", "deepspeed", "ours"))
        samples, numel = engines["samples"], engines["numel"]
        ours = samples["ours"]
        what = f"unscale, norm, clip, Adam, bf16 copy-out, {numel / 1e6:g} M parameters, {kind} gradients"
        target = ">= 1.5 x deepspeed's sequence of passes"
        if "deepspeed" in samples:
            ratio = samples["deepspeed"].median / ours.median
            note = f"{_ms(ours)} against {_ms(samples['deepspeed'])}"
            rows.append(judge("S9", what, target, f"{ratio:.2f} x", ratio >= 1.5, note))
        else:
            rows.append(skipped("S9", what, target, why["deepspeed"]))
        ratio = samples["fused"].median / ours.median
        what = f"the same against torch's passes with fused Adam, {kind} gradients"
        rows.append(shown("S9", what, f"{ratio:.2f} x", f"{_ms(ours)} against {_ms(samples['fused'])}"))
        rows += _disagreement("S9", engines)
        measured[job] = _to_json(engines)
    return rows, measured


def _measure(context: Context, job: str, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Samples by engine, each in a process of its own, and why an engine is missing."""
    numel = QUICK_NUMEL if context.quick else NUMEL
    why: dict[str, str] = {}
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        turns: dict[str, Callable[[], float]] = {}
        for name in names:
            try:
                arguments = ["adam.py", name, job, str(numel), "--threads", str(THREADS)]
                if name == "bound":
                    arguments = ["bandwidth.py", str(build_bandwidth(context)), str(numel)]
                environ = {"OMP_NUM_THREADS": str(THREADS)}
                if name == "deepspeed":
                    environ |= {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(context.extensions)}
                side = context.side(name)
                worker = Worker(side, *arguments, scratch=context.scratch, timeout_s=1800, **environ)
            except Unavailable as reason:
                if name in ("ours", "fused", "foreach"):
                    raise
                why[name] = str(reason)
                continue
            turns[name] = _turn(stack.enter_context(worker), name, results)
        for turn in turns.values():
            turn()
        samples = take_turns(turns, context.rounds, context.say)
    return {"numel": numel, "samples": samples, "results": results}, why


def _turn(worker: Worker, name: str, results: dict[str, dict[str, Any]]) -> Callable[[], float]:
    def turn() -> float:
        results[name] = worker()
        return float(results[name]["s"])

    return turn


def build_bandwidth(context: Context) -> Path:
    """The kernel that moves an Adam step's bytes, compiled here for this processor.

    Raises:
        Unavailable: no compiler, or it refused.
    """
    library = context.scratch / "libbandwidth.so"
    if library.exists():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("the bandwidth kernel needs a C compiler")
    flags = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
    command = [compiler, *flags, "-o", str(library), str(WORKLOADS / "bandwidth.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"the bandwidth kernel did not compile: {last_words(done.stderr)}")
    return library


def _disagreement(id: str, engines: dict[str, Any]) -> list[Row]:
    """A row if an engine's parameters are not those of the others: then it did not do the same work."""
    results = {name: answer for name, answer in engines["results"].items() if name != "bound"}
    reference = results["fused"]["first"]
    far = {
        name: max(abs(a - b) for a, b in zip(answer["first"], reference, strict=True))
        for name, answer in results.items()
    }
    worst = max(far, key=lambda name: far[name])
    if far[worst] <= 1e-5:
        return []
    text = f"{worst} ends {far[worst]:.2g} away from torch fused"
    return [judge(id, "all engines compute the same parameters", "<= 1e-5 apart", text, False)]


def _to_json(engines: dict[str, Any]) -> dict[str, Any]:
    numel = engines["numel"]
    return {
        "numel": numel,
        "threads": THREADS,
        "engines": {
            name: {**sample.to_json(), "GB_s": BYTES_A_PARAMETER * numel / sample.median / 1e9}
            for name, sample in engines["samples"].items()
        },
    }


def _rate(sample: Sample, numel: int) -> str:
    return sample.text("GB/s", lambda seconds: BYTES_A_PARAMETER * numel / seconds / 1e9)


def _ms(sample: Sample) -> str:
    return sample.text("ms", lambda seconds: seconds * 1e3)
