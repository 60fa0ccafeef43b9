"""What became of a case, as data that crosses a pipe and goes into the report."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Filter", "Outcome", "Result"]


class Outcome(enum.Enum):
    """How a case ended. Only PASSED says that the device keeps the promise."""

    PASSED = "passed"
    FAILED = "failed"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    FILTERED = "filtered"
    EXPECTED = "expected failure"
    UNEXPECTED = "unexpected pass"

    @property
    def is_bad(self) -> bool:
        """Whether the device is not accepted with it."""
        return self in (Outcome.FAILED, Outcome.CRASHED, Outcome.TIMEOUT, Outcome.UNEXPECTED)


@dataclass(frozen=True, slots=True)
class Filter:
    """Why a case says nothing of this device.

    Args:
        kind: "capability", "dtype", "devices", "wheel", "row", "backend", "platform", "installation", "not usable", or
            "own" where the device answers the question by what it is.
        missing: what is not there, by name.
        text: the sentence for people.
    """

    kind: str
    missing: str
    text: str


@dataclass(slots=True)
class Result:
    """One line of the report.

    Attributes:
        case: ``group/name``.
        reason: why it was filtered, or failed, in a sentence or a few.
        filter: the same as data for a filtered case.
        expected, got: what a failure is about.
        contract: the promise that a failure breaks.
        traceback: where it failed; for a crash or a hang, the stacks and the last lines the process wrote.
        notes: remarks that are no failure.
        figures: numbers worth keeping, such as how many cases an op has.
    """

    case: str
    level: int
    outcome: Outcome
    seconds: float = 0.0
    reason: str = ""
    filter: Filter | None = None
    expected: str = ""
    got: str = ""
    contract: str = ""
    traceback: str = ""
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; what is empty is left out."""
        full = asdict(self) | {"outcome": self.outcome.value, "seconds": round(self.seconds, 4)}
        return {key: value for key, value in full.items() if value not in ("", None, [], {})}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Result:
        """The result that `to_dict` was asked for."""
        values = dict(told)
        values["outcome"] = Outcome(values["outcome"])
        if values.get("filter") is not None:
            values["filter"] = Filter(**values["filter"])
        values.setdefault("seconds", 0.0)
        return cls(**values)
