"""Every case, in the order of levels, and the choice of some."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache

from ds_core.errors import DsError, did_you_mean
from ds_core.testing.conformance.case import Case, Group
from ds_core.testing.conformance.levels import LAST, LEVELS

__all__ = ["UnknownCaseError", "all_cases", "chosen"]

_MODULES = (
    "packaging",
    "probe",
    "device",
    "abilities",
    "memory",
    "tensors",
    "random_numbers",
    "numerics",
    "ops",
    "collectives",
    "training",
    "offload",
    "stress",
)


class UnknownCaseError(DsError, ValueError):
    """A case, group or level that there is not."""


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case. Imports no torch."""
    found: list[Case] = []
    for name in _MODULES:
        groups: Sequence[Group] = importlib.import_module(f"{__package__}.cases.{name}").GROUPS
        found += [case for group in groups for case in group.cases]
    return tuple(sorted(found, key=lambda case: case.level))


def chosen(level: int | None = None, only: Sequence[str] = (), *, kernels: bool = False) -> tuple[Case, ...]:
    """The cases up to `level`, or those named: ``group/case``, or ``group`` for all of it. With
    `kernels`, of those that a library of kernels can be asked.

    Raises:
        UnknownCaseError: both are given, or one of them is not there.
    """
    cases = tuple(case for case in all_cases() if case.needs.kernels or not kernels)
    if level is not None and only:
        raise UnknownCaseError("--level and --only exclude each other: --only runs the cases it names, whatever level")
    if level is not None and level not in LEVELS:
        raise UnknownCaseError(f"--level must be 0 to {LAST}, got {level}")
    if not only:
        return tuple(case for case in cases if level is None or case.level <= level)
    known = {case.id for case in cases} | {case.group for case in cases}
    for name in only:
        if name not in known:
            raise UnknownCaseError(
                f"there is no case or group {name!r}.{did_you_mean(name, known)} Groups: "
                f"{', '.join(dict.fromkeys(case.group for case in cases))}. All: ds accel test NAME --list"
            )
    return tuple(case for case in cases if case.id in only or case.group in only)
