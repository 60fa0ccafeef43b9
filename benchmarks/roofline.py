"""Every kernel against what the machine can do: a point under the roofs of memory and arithmetic, and beside torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import WORKLOADS, Context, Sample, Unavailable, Worker, last_words
from rows import Row, shown

THREADS = 2


def kernels(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """The points of kernel_table/ and the limits, from one process."""
    options = ["--threads", str(THREADS), "--rounds", str(context.rounds), *(["--quick"] if context.quick else [])]
    with Worker(
        context.ours,
        "roofline.py",
        str(build_roofs(context)),
        *options,
        scratch=context.scratch,
        timeout_s=1800,
        OMP_NUM_THREADS=str(THREADS),
    ) as worker:
        measured = worker()
    for kernel in measured["kernels"]:
        kernel["s"] = {name: Sample(tuple(values)).to_json() for name, values in kernel["s"].items()}
    shares = {kernel["name"]: share(kernel, measured["roofs"]) for kernel in measured["kernels"]}
    if not shares:
        raise Unavailable("kernel_table/ has no point")
    low, high = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
    value = f"{shares[low]:.0%} ({low}) to {shares[high]:.0%} ({high})"
    note = f"level {measured['level']}; every kernel is on the page *Roofline*"
    return [shown("roofline", f"share of the roof, {len(shares)} kernels, {THREADS} threads", value, note)], measured


def build_roofs(context: Context) -> Path:
    """The loops that find the machine's limits, compiled here for this processor.

    Raises:
        Unavailable: no compiler, or it refused.
    """
    library = context.scratch / "libroofs.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("the loops that find the machine's limits need a C compiler")
    flags = ["-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-fPIC", "-shared"]
    command = [compiler, *flags, "-o", str(library), str(WORKLOADS / "roofs.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"roofs.c did not compile: {last_words(done.stderr)}")
    return library


def bandwidth(roofs: Mapping[str, float]) -> float:
    """Bytes a second of the fastest kind of traffic."""
    return max(roofs[name] for name in ("read", "write", "copy", "triad"))


def roof(kernel: Mapping[str, Any], roofs: Mapping[str, float]) -> tuple[float, str]:
    """Least seconds of one call, and what bounds it: ``memory``, or the name of the arithmetic."""
    by_memory = kernel["bytes"] / bandwidth(roofs)
    peak = roofs.get(kernel["unit"], 0.0) or roofs["fp32"]
    by_arithmetic = kernel["flops"] / peak
    return (by_memory, "memory") if by_memory >= by_arithmetic else (by_arithmetic, kernel["unit"])


def share(kernel: Mapping[str, Any], roofs: Mapping[str, float]) -> float:
    """How much of what the machine can do the kernel does, by its median."""
    return float(roof(kernel, roofs)[0] / kernel["s"]["ours"]["median"])
