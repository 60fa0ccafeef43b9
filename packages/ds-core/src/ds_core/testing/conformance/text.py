"""A report for people: the lines of a terminal, and Markdown for READMEs."""

from __future__ import annotations

from collections.abc import Sequence

from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.levels import LAST, LEVELS
from ds_core.testing.conformance.outcome import Outcome, Result
from ds_core.testing.conformance.report import Report, reached_level, tools

__all__ = ["COLUMNS", "failures", "filtered", "headline", "level_rows", "markdown"]

COLUMNS = ("level", "about", "cases", "passed", "filtered", "failed", "expected failures", "")


def headline(report: Report) -> list[str]:
    """What was tested, how far it is, and whether that is everything."""
    facts, reached = report.facts, reached_level(report)
    wheel = f" ({facts['wheel']} {facts['wheel_version']})" if "wheel" in facts else ""
    verdict = "accepted" if report.is_accepted else "not accepted"
    level = f"level {reached} of {LAST} reached" if reached is not None else "no level reached"
    lines = [f"{facts.get('id', report.name)}{wheel}: {verdict}, {level}, {report.seconds:.0f} s"]
    lines += [f"partial: {why}" for why in report.partial]
    return lines


def level_rows(report: Report) -> list[tuple[str, ...]]:
    """A row for each level that was to be run, in the order of `COLUMNS`."""
    rows = []
    for level, counts in report.by_level().items():
        planned = sum(case.level == level for case in report.cases)
        failed = sum(number for name, number in counts.items() if Outcome(name).is_bad)
        left = planned - sum(counts.values())
        numbers = (planned, counts["passed"], counts["filtered"], failed, counts["expected failure"])
        state = (
            "failed" if failed else f"{left} not run" if left else "nothing to say" if not counts["passed"] else "ok"
        )
        rows.append((str(level), LEVELS[level], *map(str, numbers), state))
    return rows


def failures(report: Report, *, tracebacks: bool = True) -> list[str]:
    """A paragraph for each case that is not as it should be: expected, got, and the promise that is broken."""
    promises = {case.id: case for case in report.cases}
    paragraphs = []
    for result in report.results:
        if result.outcome.is_bad:
            paragraphs.append("\n".join(_told(result, promises[result.case], tracebacks)))
    return paragraphs


def _told(result: Result, case: Case, tracebacks: bool) -> list[str]:
    lines = [
        f"{result.case} (level {result.level}) {result.outcome.value}",
        f"  expected  {result.expected}",
        f"  got       {result.got}",
        f"  contract  {case.contract}",
    ]
    if tracebacks and result.traceback:
        lines += ["  | " + line for line in result.traceback.splitlines()]
    return lines


def filtered(report: Report) -> list[tuple[str, str, int]]:
    """(kind, what is missing, how many cases), the most first."""
    counts: dict[tuple[str, str], int] = {}
    for result in report.results:
        if result.filter is not None:
            key = result.filter.kind, result.filter.missing
            counts[key] = counts.get(key, 0) + 1
    return [(kind, missing, n) for (kind, missing), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def markdown(report: Report) -> str:
    """A section for a README."""
    facts = report.facts
    lines = [f"## Conformance of `{facts.get('id', report.name)}`", "", *(f"{line}." for line in headline(report)), ""]
    lines += _table((*COLUMNS[:-1], "result"), level_rows(report))
    missing = filtered(report)
    if missing:
        lines += ["", "Filtered, because the device does not have it:", ""]
        lines += _table(("what", "missing", "cases"), [(kind, what, str(n)) for kind, what, n in missing])
    bad = [r for r in report.results if r.outcome.is_bad or r.outcome is Outcome.EXPECTED]
    if bad:
        lines += ["", "Not as it should be:", ""]
        lines += _table(("case", "outcome", "why"), [(r.case, r.outcome.value, r.reason or "-") for r in bad])
    about = {key: str(facts[key]) for key in ("device_type", "device_count", "comm_backend") if key in facts}
    properties: dict[str, str] = facts.get("properties", {})
    told = ", ".join(f"{key} {value}" for key, value in (about | properties | tools()).items())
    return "\n".join([*lines, "", f"Tested with: {told}.", ""])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(columns), line(["---"] * len(columns)), *(line(row) for row in rows)]
