"""Files of expected failures: one ``group/case: why`` a line. Strict: a listed case that passes is a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ds_core.errors import did_you_mean
from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.outcome import Outcome, Result
from ds_core.testing.conformance.registry import UnknownCaseError

__all__ = ["judge", "read_expected"]


def read_expected(path: Path, cases: Sequence[Case]) -> dict[str, str]:
    """Case to reason. Blank lines and lines that begin with ``#`` mean nothing.

    Raises:
        UnknownCaseError: the file cannot be read, or a line names no case or gives no reason.
    """
    known = {case.id for case in cases}
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UnknownCaseError(f"--xfail {path}: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, why = (part.strip() for part in line.partition(":"))
        if not colon or not why:
            raise UnknownCaseError(f"{path}, line {number}: must be 'group/case: why it fails', got {line.strip()!r}")
        if name not in known:
            raise UnknownCaseError(f"{path}, line {number}: there is no case {name!r}.{did_you_mean(name, known)}")
        found[name] = why
    return found


def judge(result: Result, expected: Mapping[str, str]) -> Result:
    """The result in the light of what was expected of the case."""
    why = expected.get(result.case)
    if why is None or result.outcome is Outcome.FILTERED:
        return result
    if result.outcome is Outcome.PASSED:
        result.outcome = Outcome.UNEXPECTED
        result.expected, result.got = f"a failure ({why})", "a pass; take it out of the file of expected failures"
        result.reason = f"expected {result.expected}; got {result.got}"
    elif result.outcome.is_bad:
        result.outcome = Outcome.EXPECTED
        result.notes.append(f"expected: {why}")
    return result
