"""Adam on the CPU: one step over N parameters, and the whole update with unscale, norm, clip and the bfloat16 copy.

    python bench_adam.py [N, default 5e7] [threads, default 2] [rounds, default 9]

Prints one JSON line with the median, minimum and maximum of interleaved runs in milliseconds: S8 compares the step with
torch's fused optimizer and with the memory bound (`traffic.cpp`: the same four streams read and three written with one
addition each, through the same binding and thread pool); S9 compares two passes (sum_of_squares, then adam_) with the
separate passes that an offloaded optimizer runs today. Only the bound needs a C++ compiler.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ds_accel_cpu.isa import library
from ds_accel_cpu.launching import callable_kernel
from ds_accel_cpu.optim import CPUAdam
from ds_core import ops
from ds_core.ops import native
from ds_core.ops.arguments import argument_struct
from ds_core.optim.flat import FlatUpdate

LEVEL_FLAGS = {"x86_64_v2": ["-march=x86-64-v2"], "x86_64_v3": ["-march=x86-64-v3"], "x86_64_v4": ["-march=x86-64-v4"]}
MAX_NORM = 1.0


def parameter(numel: int) -> torch.nn.Parameter:
    """A float32 parameter with a small gradient."""
    made = torch.nn.Parameter(torch.randn(numel))
    made.grad = torch.randn(numel) * 1e-3
    return made


def bound(numel: int) -> Callable[[], object] | None:
    """The memory traffic of a step with trivial arithmetic; None without a compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "traffic.so"
        source = Path(__file__).with_name("traffic.cpp")
        flags = ["-O3", "-std=c++17", "-shared", "-fPIC", *LEVEL_FLAGS.get(library().target, [])]
        command = [compiler, *flags, "-I", str(native.include_dir()), str(source), "-o", str(built)]
        subprocess.run(command, check=True)
        kernel = callable_kernel(native.load(built), "adam_")
    tensors = [torch.randn(numel) for _ in range(4)]
    p, g, m, v = (t.data_ptr() for t in tensors)
    arguments: dict[str, float] = {name: 0 for name, _ in argument_struct("ds_adam_args").fields}
    arguments.update(param_dtype=1, grad_dtype=1, state_dtype=1, numel=numel, rounding_seed=-1)
    arguments.update(param=p, grad=g, exp_avg=m, exp_avg_sq=v)

    def run() -> object:
        kernel(tensors[0].device, **arguments)
        return tensors

    return run


def separate_passes(numel: int, fused_step: Callable[[], object], param: torch.nn.Parameter) -> Callable[[], object]:
    """Overflow check, norm, unscale with clip, Adam, copy to bfloat16: each over all elements."""
    working = torch.empty(numel, dtype=torch.bfloat16)
    scale = 1024.0

    def run() -> None:
        grad = param.grad
        assert grad is not None
        total = float(grad.sum())
        if total in (float("inf"), -float("inf")) or total != total:
            raise RuntimeError("gradients are not finite")
        norm = float(torch.linalg.vector_norm(grad)) / scale
        clip = max(norm / MAX_NORM, 1.0)
        grad.mul_(1.0 / (scale * clip))
        fused_step()
        working.copy_(param.detach())
        grad.mul_(scale * clip)  # untimed share: see `main`, which measures and subtracts it

    return run


def two_passes(numel: int) -> Callable[[], object]:
    """The same update as sum_of_squares and one adam_."""
    param = parameter(numel)
    optimizer = CPUAdam([param])
    working = torch.empty(numel, dtype=torch.bfloat16)
    grad = param.grad
    assert grad is not None
    scale = 1024.0
    steps = iter(range(1, 10**9))

    def run() -> None:
        norm = float(ops.sum_of_squares(grad)) ** 0.5 / scale
        if norm in (float("inf"), -float("inf")) or norm != norm:
            raise RuntimeError("gradients are not finite")
        factor = torch.tensor(1.0 / (scale * max(norm / MAX_NORM, 1.0)))
        update = FlatUpdate(param.data, grad, working, 0, 0, 0, next(steps))
        optimizer.step_flat([update], grad_factor=factor)

    return run


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, interleaved, after one untimed round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start_s = time.perf_counter()
            run()
            if turn:
                times[name].append((time.perf_counter() - start_s) * 1e3)
    return times


def main(numel: int, threads: int, rounds: int) -> None:
    """Runs everything and prints the line."""
    torch.set_num_threads(threads)
    theirs, ours = parameter(numel), parameter(numel)
    fused = torch.optim.AdamW([theirs], fused=True).step
    runs: dict[str, Callable[[], object]] = {"fused": fused, "ours": CPUAdam([ours]).step}
    limit = bound(numel)
    if limit is not None:
        runs["bound"] = limit
    runs["separate"] = separate_passes(numel, fused, theirs)
    runs["restore"] = lambda: theirs.grad.mul_(1.0) if theirs.grad is not None else None
    runs["two_passes"] = two_passes(numel)
    times = measure(runs, rounds)
    middle = {name: statistics.median(values) for name, values in times.items()}
    result: dict[str, object] = {
        "numel": numel,
        "threads": threads,
        "level": library().target,
        "ms": {n: [round(x, 2) for x in (middle[n], min(t), max(t))] for n, t in times.items()},
        "ours_GB/s": round(28 * numel / middle["ours"] / 1e6, 1),
        "S8_over_fused": round(middle["fused"] / middle["ours"], 3),
        "S9_over_separate_passes": round((middle["separate"] - middle["restore"]) / middle["two_passes"], 3),
    }
    if "bound" in middle:
        result["S8_of_bound"] = round(middle["bound"] / middle["ours"], 3)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    given = [int(float(argument)) for argument in sys.argv[1:]]
    numel, threads, rounds = given + [50_000_000, 2, 9][len(given) :]
    main(numel, threads, rounds)
