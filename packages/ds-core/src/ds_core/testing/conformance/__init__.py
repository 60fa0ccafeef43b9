"""The conformance kit: the cases a device must pass, and what runs them; from a shell it is ``ds accel test NAME``.

A vendor's own repository runs them in pytest with one file::

    from ds_core.testing.conformance import accelerator_suite

    test_conformance = accelerator_suite("openbox")

Importing this imports neither torch nor pytest; see Note [Parent] in `lazy`.
"""

from __future__ import annotations

from ds_core.testing.conformance.outcome import Filter, Outcome, Result
from ds_core.testing.conformance.registry import UnknownCaseError, all_cases, chosen
from ds_core.testing.conformance.report import Report
from ds_core.testing.conformance.session import run

__all__ = [
    "Filter",
    "Outcome",
    "Report",
    "Result",
    "UnknownCaseError",
    "all_cases",
    "chosen",
    "run",
]
