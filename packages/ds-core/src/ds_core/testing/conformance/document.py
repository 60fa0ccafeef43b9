"""The JSON report as a checked document, for programs that read it: tables of devices, comparisons of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ds_core.errors import DsError

__all__ = ["ReportDocument", "read_report"]

OutcomeName = Literal["passed", "failed", "crashed", "timeout", "filtered", "expected failure", "unexpected pass"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FilterDocument(_Strict):
    """Why a case says nothing of the device."""

    kind: str
    missing: str
    text: str


class ResultDocument(_Strict):
    """One case."""

    case: str
    level: int
    outcome: OutcomeName
    seconds: float = 0.0
    reason: str = ""
    filter: FilterDocument | None = None
    expected: str = ""
    got: str = ""
    contract: str = ""
    traceback: str = ""
    notes: list[str] = []
    figures: dict[str, float | str] = {}


class ReportDocument(_Strict):
    """A run; see `ds_core.testing.conformance.report.Report`."""

    version: Literal[1] = Field(alias="schema")
    accelerator: dict[str, Any]
    complete: bool
    partial_because: list[str]
    accepted: bool
    reached_level: int | None
    seconds: float
    tools: dict[str, str]
    totals: dict[OutcomeName, int]
    levels: list[dict[str, int | str]]
    results: list[ResultDocument]


def read_report(path: Path) -> ReportDocument:
    """The report in a file that ``ds accel test --json`` wrote.

    Raises:
        DsError: it cannot be read, or is no report of this schema.
    """
    try:
        return ReportDocument.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise DsError(f"{path} is no conformance report of schema 1: {error}") from error
