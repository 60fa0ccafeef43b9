"""The conformance kit: the cases a device must pass, and what runs them; from a shell it is ``ds accel test NAME``.

A vendor's own repository runs them in pytest with one file::

    from ds_core.testing.conformance import accelerator_suite

    test_conformance = accelerator_suite("openbox")

Importing this imports neither torch nor pytest; see Note [Parent] in `lazy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.outcome import Filter, Outcome, Result
from ds_core.testing.conformance.registry import UnknownCaseError, all_cases, chosen
from ds_core.testing.conformance.report import Report
from ds_core.testing.conformance.session import run

if TYPE_CHECKING:
    import os

__all__ = [
    "Case",
    "Filter",
    "Outcome",
    "Report",
    "Result",
    "UnknownCaseError",
    "accelerator_suite",
    "all_cases",
    "chosen",
    "run",
]


def accelerator_suite(
    name: str | None = None,
    level: int | None = None,
    only: Sequence[str] = (),
    *,
    xfail: str | os.PathLike[str] | None = None,
    timeout_s: float = 60.0,
) -> Callable[..., None]:
    """A pytest test function with an item a case, to be assigned to a name that begins with ``test_``. Imports pytest.

    What the device lacks is counted as *filtered*, in a section of the summary of its own. Cases run in a worker that
    all items share, so a crash fails its item and no other.

    Args:
        name: the accelerator; else ``--accelerator`` (with ``-p ds_core.testing.conformance.pytest_plugin``), else
            ``DS_ACCELERATOR``.
        level: levels up to this one; all when None.
        only: cases or groups in place of levels.
        xfail: a file of expected failures, ``group/case: why`` a line. A listed case that passes fails.
        timeout_s: what an ordinary case may take.
    """
    from ds_core.testing.conformance.pytest_plugin import make_suite

    return make_suite(name, level, only, xfail=xfail, timeout_s=timeout_s)
