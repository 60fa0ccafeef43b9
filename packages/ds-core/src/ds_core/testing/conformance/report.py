"""`Report`: the results of a run with what was tested, totals per level, the level reached, and whether it is whole."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ds_core
from ds_core.hooks import HOOK_API
from ds_core.plugins.requirements import installed_version
from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.levels import LEVELS
from ds_core.testing.conformance.outcome import Outcome, Result

__all__ = ["SCHEMA", "Report", "reached_level"]

SCHEMA = 1
"""Of the JSON document. Fields are added under the same number; what changes meaning gets the next one."""

_TOOLS = ("ds-core", "torch", "ds-zero", "ds-accel-cpu", "numpy")


@dataclass
class Report:
    """A run of some cases on one accelerator.

    Attributes:
        name: the accelerator as it was asked for.
        cases: what was to be run.
        results: what was run, in that order.
        facts: what the device said of itself.
        partial: why this is no whole run; empty when it is.
        seconds: of the whole run.
    """

    name: str
    cases: Sequence[Case]
    results: list[Result] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    partial: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every case of every level ran to an outcome on a usable device."""
        return not self.partial

    @property
    def is_accepted(self) -> bool:
        """Whether what was asked for ran and nothing of it failed."""
        if any(result.outcome.is_bad for result in self.results) or len(self.results) < len(self.cases):
            return False
        asked_device = any(case.needs.device for case in self.cases)
        return bool(self.facts.get("usable", False)) or not asked_device

    def totals(self) -> dict[str, int]:
        """How many cases by outcome; every outcome is there."""
        return _count(self.results)

    def by_level(self) -> dict[int, dict[str, int]]:
        """The same for each level that was to be run."""
        levels = sorted({case.level for case in self.cases})
        return {level: _count([r for r in self.results if r.level == level]) for level in levels}

    def to_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "schema": SCHEMA,
            "accelerator": self.facts or {"id": self.name},
            "complete": self.is_complete,
            "partial_because": list(self.partial),
            "accepted": self.is_accepted,
            "reached_level": reached_level(self),
            "seconds": round(self.seconds, 2),
            "tools": tools(),
            "totals": self.totals(),
            "levels": [
                {"level": level, "name": LEVELS[level], "cases": sum(c.level == level for c in self.cases)} | counts
                for level, counts in self.by_level().items()
            ],
            "results": [result.to_dict() for result in self.results],
        }


def tools() -> dict[str, str]:
    """Versions of what the result depends on."""
    found = {name: installed_version(name) for name in _TOOLS}
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "hook_api": ".".join(map(str, HOOK_API)),
        **{name: version for name, version in found.items() if version is not None},
        "ds_core": ds_core.__version__,
    }


def reached_level(report: Report) -> int | None:
    """The highest level that ran whole and without failures, as did all below it; None where not even the first did.

    A level in which everything was filtered is not reached: it says nothing of the device.
    """
    from ds_core.testing.conformance.registry import all_cases

    reached: int | None = None
    outcomes: Mapping[str, Outcome] = {result.case: result.outcome for result in report.results}
    for level in LEVELS:
        ids = [case.id for case in all_cases() if case.level == level]
        found = [outcomes[id] for id in ids if id in outcomes]
        whole = len(found) == len(ids) and bool(ids)
        if not whole or any(o.is_bad or o is Outcome.EXPECTED for o in found) or Outcome.PASSED not in found:
            break
        reached = level
    return reached


def _count(results: Sequence[Result]) -> dict[str, int]:
    return {outcome.value: sum(result.outcome is outcome for result in results) for outcome in Outcome}
