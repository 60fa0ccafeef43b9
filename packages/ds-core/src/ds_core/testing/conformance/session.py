"""`run`: some cases on one accelerator, from the choice of cases to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.expected import judge
from ds_core.testing.conformance.levels import LAST
from ds_core.testing.conformance.outcome import Result
from ds_core.testing.conformance.registry import all_cases
from ds_core.testing.conformance.report import Report
from ds_core.testing.conformance.runner import Runner

__all__ = ["run"]


def run(
    name: str,
    cases: Sequence[Case] | None = None,
    *,
    timeout_s: float = 60.0,
    expected: Mapping[str, str] | None = None,
    told: Callable[[Case, Result], None] = lambda case, result: None,
    env: Mapping[str, str] | None = None,
    library: Path | None = None,
) -> Report:
    """Runs `cases` (all when None) on the accelerator `name`, each isolated from this process.

    Args:
        name: short, or ``wheel:name``.
        cases: see `ds_core.testing.conformance.registry.chosen`.
        timeout_s: limit of an ordinary case.
        expected: reasons by case for those that are to fail; see `read_expected`.
        told: called with each case and what became of it. Ctrl-C ends the run with a report of what there is.
        env: variables of the workers on top of this process's.
        library: a library of kernels to test in place of the accelerator; `cases` must be such as need no more.

    Raises:
        AcceleratorError: there is no such accelerator, or the worker cannot start.
    """
    cases = all_cases() if cases is None else cases
    report, started = Report(name, cases), time.perf_counter()
    runner = Runner(name, timeout_s=timeout_s, env=env, library=library)
    try:
        for case in cases:
            result = judge(runner.run(case), expected or {})
            report.results.append(result)
            told(case, result)
        report.facts = runner.facts()
    except KeyboardInterrupt:
        report.partial.append("it was interrupted")
    finally:
        runner.close()
    report.seconds = time.perf_counter() - started
    report.partial += _partial(report)
    return report


def _partial(report: Report) -> list[str]:
    """Why the run is not whole."""
    found = []
    left_out = len(all_cases()) - len(report.cases)
    if left_out:
        highest = max((case.level for case in report.cases), default=0)
        by_level = [case for case in all_cases() if case.level <= highest]
        what = f"levels up to {highest} of {LAST}" if len(by_level) == len(report.cases) else "chosen cases"
        found.append(f"only {what} were run: {len(report.cases)} of {len(all_cases())} cases")
    if report.facts and not report.facts.get("usable", False):
        found.append(report.facts.get("reason") or report.facts.get("problem") or "the device is not usable here")
    return found
