"""Run every conformance case of every op on a CPU OpenCL device, and print op by op what came of it.

Usage: python run.py SYCL_VERSION [OP ...]
Ends with 1 if a case fails, and with 2 if there is no device.
"""

from __future__ import annotations

import sys
import time

import torch

from ds_accel_xpu.cpu_device import CpuDevice, why_no_cpu_device
from ds_core.ops.case import OpCase
from ds_core.ops.table import OPS
from ds_core.testing import op_cases


def main(arguments: list[str]) -> int:
    """The exit code."""
    sycl, *asked = arguments
    reason = why_no_cpu_device(sycl)
    if reason:
        say(f"not executed: {reason}")
        return 2
    torch.set_num_threads(1)
    device = CpuDevice(sycl)
    library = device.ops.library
    say(f"{library.target} ({library.build}) on {device.name}")
    failed = 0
    for op in asked or library.kernels:
        began_s = time.perf_counter()
        wrong = [message for case in op_cases.cases(op) if (message := outcome(device, op, case))]
        count, took_s = len(op_cases.cases(op)), time.perf_counter() - began_s
        verdict = "executed on the CPU OpenCL device" if not wrong else f"FAILED: {wrong[0]}"
        say(f"{op:34} {count - len(wrong):4} of {count:4} cases, {took_s:5.1f} s  {verdict}")
        failed += len(wrong)
    without = [op for op in OPS if op not in library.kernels]
    say(f"{len(library.kernels)} of {len(OPS)} ops; the reference serves {', '.join(without)}")
    return int(failed > 0)


def outcome(device: CpuDevice, op: str, case: OpCase) -> str:
    """What is wrong with a case, or nothing."""
    try:
        op_cases.check_kernel(op, case, getattr(device.ops, op), "cpu")
    except (AssertionError, RuntimeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def say(line: str) -> None:
    """One line of the table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
