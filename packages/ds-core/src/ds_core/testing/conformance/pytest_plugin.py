"""The cases as pytest items, in a vendor's own repository; loaded by `accelerator_suite`, or with ``-p`` and its name.

A case that is filtered is neither a pass nor a skip: pytest counts it as *filtered*, and tells the reasons in a section
of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.expected import judge, read_expected
from ds_core.testing.conformance.outcome import Outcome, Result
from ds_core.testing.conformance.registry import all_cases, chosen
from ds_core.testing.conformance.report import Report
from ds_core.testing.conformance.runner import Runner
from ds_core.testing.conformance.text import failures, filtered, headline

__all__ = ["Conformance", "make_suite", "pytest_addoption", "pytest_configure"]

_NAME = "ds-conformance"
_PROPERTY = "ds_conformance"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--accelerator NAME``, for suites that name none."""
    parser.addoption("--accelerator", metavar="NAME", default=None, help="the accelerator whose conformance is tested")


def pytest_configure(config: pytest.Config) -> None:
    """Registers what counts and reports."""
    _conformance(config)


class Conformance:
    """A session's workers and results, by accelerator, and the hooks that report them."""

    def __init__(self) -> None:
        self._runners: dict[str, Runner] = {}
        self._reports: dict[str, Report] = {}

    def run(self, name: str, case: Case, timeout_s: float, expected: Mapping[str, str]) -> Result:
        """What became of the case."""
        if name not in self._runners:
            self._runners[name] = Runner(name, timeout_s=timeout_s)
            self._reports[name] = Report(name, [])
        result = judge(self._runners[name].run(case), expected)
        report = self._reports[name]
        report.cases = [*report.cases, case]
        report.results.append(result)
        report.seconds += result.seconds
        return result

    def close(self) -> None:
        """Ends the workers."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, Any] | None:
        """*filtered* in place of *skipped*."""
        if report.skipped and (_PROPERTY, Outcome.FILTERED.value) in report.user_properties:
            return "filtered", "f", ("FILTERED", {"yellow": True})
        return None

    def pytest_sessionfinish(self) -> None:
        """Asks the devices who they are, while there are workers."""
        for name, runner in self._runners.items():
            self._reports[name].facts = runner.facts()
            left_out = len(all_cases()) - len(self._reports[name].results)
            if left_out:
                self._reports[name].partial.append(f"{left_out} of {len(all_cases())} cases were not run")
        self.close()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What was tested, how far it is, and what was filtered."""
        for report in self._reports.values():
            terminalreporter.section(f"conformance of {report.name}")
            for line in headline(report):
                terminalreporter.write_line(line)
            for kind, missing, count in filtered(report):
                terminalreporter.write_line(f"filtered: {count} for want of {missing} ({kind})")


def make_suite(
    name: str | None,
    level: int | None = None,
    only: Sequence[str] = (),
    *,
    xfail: str | os.PathLike[str] | None = None,
    timeout_s: float = 60.0,
) -> Callable[..., None]:
    """See `ds_core.testing.conformance.accelerator_suite`."""
    expected = read_expected(Path(xfail), all_cases()) if xfail is not None else {}
    parameters = [pytest.param(case, id=case.id) for case in chosen(level, only)]

    @pytest.mark.parametrize("conformance_case", parameters)
    def test_conformance(conformance_case: Case, request: pytest.FixtureRequest) -> None:
        asked = name or request.config.getoption("--accelerator", default=None) or os.environ.get("DS_ACCELERATOR")
        if not asked:
            pytest.fail(
                "which accelerator? Name it in accelerator_suite(name), in DS_ACCELERATOR, or with "
                "-p ds_core.testing.conformance.pytest_plugin --accelerator NAME",
                pytrace=False,
            )
        conformance = _conformance(request.config)
        result = conformance.run(asked, conformance_case, timeout_s, expected)
        request.node.user_properties.append((_PROPERTY, result.outcome.value))
        _tell(asked, conformance_case, result)

    return test_conformance


def _tell(name: str, case: Case, result: Result) -> None:
    if result.outcome is Outcome.FILTERED:
        pytest.skip(result.reason)
    if result.outcome is Outcome.EXPECTED:
        pytest.xfail(result.notes[-1])
    if result.outcome.is_bad:
        pytest.fail("\n".join(failures(Report(name, [case], [result]))), pytrace=False)


def _conformance(config: pytest.Config) -> Conformance:
    found = config.pluginmanager.get_plugin(_NAME)
    if found is None:
        found = Conformance()
        config.pluginmanager.register(found, _NAME)
        config.add_cleanup(found.close)
    assert isinstance(found, Conformance)
    return found
