"""The conformance cases of all ops on one emulated machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ds_accel_cpu.isa import library
from ds_accel_cpu.ops import CpuOps
from ds_core.ops.case import Exactness, OpCase
from ds_core.ops.table import OPS
from ds_core.testing import op_cases
from emulation.ops import EmulatedOps
from emulation.runner import Runner, RunnerError
from emulation.targets import Built, Machine, command

__all__ = ["Outcome", "run_cases"]


@dataclass(slots=True)
class Outcome:
    """What happened on one machine.

    Args:
        machine: which.
        reason: why nothing was run, else empty.
        emulator: its version.
        compiler: its version.
        cases: number that ran, by op.
        same: of them, those whose outputs are bit-equal to this machine's kernels.
        failures: a line for each case outside of its bound.
        uncovered: ops of the table that ds-accel-cpu does not have.
        uncalled: kernels of the library that no case called.
    """

    machine: Machine
    reason: str = ""
    emulator: str = ""
    compiler: str = ""
    cases: dict[str, int] = field(default_factory=dict)
    same: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    uncalled: list[str] = field(default_factory=list)
    took_s: float = 0.0

    def summary(self) -> str:
        """One line."""
        total, same = sum(self.cases.values()), sum(self.same.values())
        parts = [
            f"{len(self.cases)} ops, {total} cases, {len(self.failures)} failed",
            f"{same} bit-equal to {library().target} here",
            f"no implementation for {', '.join(self.uncovered)}" if self.uncovered else "",
            f"kernels that no case called: {', '.join(self.uncalled)}" if self.uncalled else "",
            f"{self.took_s:.0f} s",
        ]
        return "; ".join(filter(None, parts))


def run_cases(machine: Machine, built: Built, ops: Sequence[str], emulator: str) -> Outcome:
    """Runs them; `ops` empty means all."""
    outcome = Outcome(machine, emulator=emulator, compiler=built.compiler)
    began = time.monotonic()
    native = CpuOps(library())
    with Runner(command(machine, built), built.library(machine.level)) as runner:
        emulated = EmulatedOps(runner)
        try:
            for name in ops or OPS:
                if hasattr(native, name):
                    _run_op(outcome, name, getattr(emulated, name), getattr(native, name))
                else:
                    outcome.uncovered.append(name)
            if not ops:
                outcome.uncalled = sorted(set(native.library.kernels) - emulated.called)
        except RunnerError as error:  # the program may be gone: nothing after this would be news
            outcome.failures.append(str(error))
    outcome.took_s = time.monotonic() - began
    return outcome


def _run_op(outcome: Outcome, name: str, kernel: Callable[..., Any], here: Callable[..., Any]) -> None:
    outcome.cases[name] = outcome.same[name] = 0
    for case in op_cases.cases(name):
        outcome.cases[name] += 1
        try:
            op_cases.check_kernel(name, case, kernel, "cpu")
            outcome.same[name] += _is_same(name, case, kernel, here)
        except AssertionError as error:
            outcome.failures.append(str(error))


def _is_same(name: str, case: OpCase, kernel: Callable[..., Any], here: Callable[..., Any]) -> bool:
    calls = [op_cases.build(name, case) for _ in range(2)]
    found = [
        (*op_cases.as_tuple(run(**call.tensors, **call.scalars)), *(t for t in call.tensors.values() if t is not None))
        for run, call in zip((kernel, here), calls, strict=True)
    ]
    try:
        for got, want in zip(*found, strict=True):
            op_cases.compare(got, want, Exactness(), "")
    except AssertionError:
        return False
    return True
