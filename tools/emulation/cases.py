"""The conformance cases of all ops on one emulated machine."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ds_accel_cpu.isa import library
from ds_accel_cpu.launching import cpu_ops
from ds_accel_cpu.plugin import ds_ops
from ds_core.ops.calls import KernelOps
from ds_core.ops.case import Exactness, OpCase
from ds_core.ops.native import KernelLibrary
from ds_core.ops.table import OPS
from ds_core.testing import op_cases
from emulation.beside import calls
from emulation.ops import EmulatedOps
from emulation.runner import Runner, RunnerError
from emulation.targets import Built, Machine, command

__all__ = ["Outcome", "run_cases"]


_RUN = 16
"""Where ``run`` stands in a ds_kernel_entry, after a pointer and two 32-bit numbers."""


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
        beside: calls of kernels that are no ops.
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
    beside: int = 0
    uncovered: list[str] = field(default_factory=list)
    uncalled: list[str] = field(default_factory=list)
    took_s: float = 0.0

    def summary(self) -> str:
        """One line."""
        total, same = sum(self.cases.values()), sum(self.same.values())
        parts = [
            f"{len(self.cases)} ops, {total} cases, {self.beside} calls beside, {len(self.failures)} failed",
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
    native = cpu_ops(library())
    listed = {implementation.op for implementation in ds_ops()}
    with Runner(command(machine, built), built.library(machine.level)) as runner:
        emulated = EmulatedOps(runner)
        try:
            for name in ops or OPS:
                if name in listed:
                    _run_op(outcome, name, getattr(emulated, name), getattr(native, name))
                else:
                    outcome.uncovered.append(name)
            if not ops:
                _run_beside(outcome, emulated, native)
                outcome.uncalled = _uncalled(native.library, emulated.called)
        except RunnerError as error:  # the program may be gone: nothing after this would be news
            outcome.failures.append(str(error))
    outcome.took_s = time.monotonic() - began
    return outcome


def _run_op(outcome: Outcome, name: str, kernel: Callable[..., Any], here: Callable[..., Any]) -> None:
    outcome.cases[name] = outcome.same[name] = 0
    cases = op_cases.cases(name)
    gc.freeze()  # what is alive now is no tensor of a call, and needs not be looked through at every call
    for case in cases:
        outcome.cases[name] += 1
        try:
            op_cases.check_kernel(name, case, kernel, "cpu")
            outcome.same[name] += _is_same(name, case, kernel, here)
        except AssertionError as error:
            outcome.failures.append(str(error))
        except LookupError as error:
            outcome.failures.append(f"{name}, case {case.name}: {error}")


def _run_beside(outcome: Outcome, emulated: EmulatedOps, native: KernelOps) -> None:
    for call in calls():
        outcome.beside += 1
        if not torch.equal(call.run(emulated.kernel), call.run(native.kernel)):
            outcome.failures.append(f"{call.kernel}, {call.case}: not the bits of {native.library.target}")


def _uncalled(library: KernelLibrary, called: set[str]) -> list[str]:
    """Rows whose function was not called, by their own name or by that of another row with the same function."""
    functions = {name: ctypes.c_void_p.from_address(row.address + _RUN).value for name, row in library.kernels.items()}
    ran = {functions[name] for name in called}
    return sorted(name for name, function in functions.items() if function not in ran)


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
