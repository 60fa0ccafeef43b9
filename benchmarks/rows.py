"""Rows of the table: what was aimed at, what was measured, and whether it was met."""

from __future__ import annotations

import dataclasses
from typing import Any

MET, MISSED, SKIPPED, ABSENT, SHOWN = "met", "missed", "skipped", "not built", "shown"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        id: number of the target, with the case it is about.
        what: the comparison, in words.
        target: the bound, in words; empty where the row only shows a number.
        value: what was measured, in words.
        status: met, missed, skipped, not built, or shown (no target).
        note: why it was skipped, or what else to know.
    """

    id: str
    what: str
    target: str
    value: str
    status: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a dict."""
        return dataclasses.asdict(self)


def judge(id: str, what: str, target: str, value: str, is_met: bool, note: str = "") -> Row:
    """A row with a bound."""
    return Row(id, what, target, value, MET if is_met else MISSED, note)


def skipped(id: str, what: str, target: str, reason: object) -> Row:
    """A row that could not be measured, and why."""
    return Row(id, what, target, "", SKIPPED, str(reason))


def shown(id: str, what: str, value: str, note: str = "") -> Row:
    """A row without a bound."""
    return Row(id, what, "", value, SHOWN, note)


def absent(id: str, what: str, target: str, note: str = "") -> Row:
    """A target for something this version does not have."""
    return Row(id, what, target, "", ABSENT, note)
