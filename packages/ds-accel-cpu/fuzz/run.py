"""Calls every kernel with random shapes, layouts and values in buffers of exactly their size: python run.py.

Meant for a wheel built with -DDSK_SANITIZE=ON, under a preloaded AddressSanitizer, where a kernel that reads or writes
one element too many ends the process (`nox -s sanitize`). Each level runs in a process of its own, and each call can be
repeated: `python run.py --level x86_64_v3 --ops softmax_forward --first 1234 --calls 1`.

Indices are spoilt in some calls, which must be refused with an OpError. Ends with 1 when a call failed or when an op of
the table has no recipe.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from draw import Draw
from recipes import RECIPES

from ds_accel_cpu.isa import load_level, usable_levels
from ds_accel_cpu.launching import cpu_ops
from ds_accel_cpu.plugin import ds_ops
from ds_core.errors import OpError
from ds_core.ops.table import op
from ds_core.testing import op_cases

_HUGE = 2**62


def spoil(call: op_cases.Call, draw: Draw) -> str | None:
    """Puts a row number that cannot be into an index tensor; returns the name of the tensor, None if there is none."""
    names = ("index", "positions", "target")
    found = [(n, t) for n, t in call.tensors.items() if n in names and t is not None and t.numel()]
    if not found:
        return None
    name, tensor = draw.pick(*found)
    place = draw.random.randrange(tensor.numel())
    tensor.view(-1)[place] = draw.pick(-7, -_HUGE, _HUGE, 2**31, 10_000)
    return name


def call_once(name: str, number: int, kernel: Callable[..., Any]) -> None:
    """One call, drawn from its number alone.

    Raises:
        AssertionError: a spoilt index was not refused.
    """
    draw = Draw(random.Random(zlib.crc32(f"{name}/{number}".encode())))
    case = RECIPES[name](draw).case(str(number))
    call = op_cases.build(name, case)
    op(name).definition().check(**call.tensors, **call.scalars)
    torch.set_num_threads(draw.pick(1, 1, 2, 3))
    spoilt = spoil(call, draw) if draw.chance(0.15) else None
    try:
        kernel(**call.tensors, **call.scalars)
    except OpError:
        if spoilt is None:
            raise
        return
    if spoilt is not None:
        raise AssertionError(f"{name}, call {number}: a wrong {spoilt} was not refused")


def fuzz(level: str, ops: Sequence[str], first: int, calls: int, seconds: float, last: Path | None) -> int:
    """Calls of each op on one level, in turn, until there were `calls` of each or the time is over."""
    kernels = cpu_ops(load_level(level))
    until, done = time.monotonic() + seconds, 0
    for number in range(first, first + calls):
        for name in ops:
            if last is not None:
                last.write_text(f"--level {level} --ops {name} --first {number} --calls 1")
            call_once(name, number, getattr(kernels, name))
            done += 1
        if time.monotonic() > until:
            break
    return done


def run_level(level: str, options: argparse.Namespace, ops: Sequence[str]) -> bool:
    """One level in a process of its own; says how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last"
        arguments = ["--level", level, "--last", str(last), "--ops", *ops]
        limits = ["--first", str(options.first), "--calls", str(options.calls), "--seconds", str(options.seconds)]
        ended = subprocess.run([sys.executable, __file__, *arguments, *limits], check=False)
        if ended.returncode == 0:
            return True
        again = last.read_text() if last.exists() else "(no call was made)"
        print(f"{level}: failed with {ended.returncode}; again with: python {Path(__file__).name} {again}", flush=True)
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", nargs="+", default=usable_levels(), help="levels to run, each in a process")
    parser.add_argument("--ops", nargs="+", default=list(RECIPES), help="these ops only")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--calls", type=int, default=200, help="most calls of each op")
    parser.add_argument("--seconds", type=float, default=25.0, help="a level's share of time")
    parser.add_argument("--level", help="run this one here")
    parser.add_argument("--last", type=Path, help="file that names the call under way")
    options = parser.parse_args()
    missing = sorted({impl.op for impl in ds_ops()} - set(RECIPES))
    if missing:
        print(f"no recipe in recipes.py for {', '.join(missing)}", flush=True)
        return 1
    if options.level:
        done = fuzz(options.level, options.ops, options.first, options.calls, options.seconds, options.last)
        print(f"{options.level}: {done} calls of {len(options.ops)} ops", flush=True)
        return 0
    failed = [level for level in options.levels if not run_level(level, options, options.ops)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
