"""The instruction-set level this process runs, and the kernel library built for it.

Environment:
    DS_CPU_ISA: a level to use instead of the best one, for tests and for finding faults.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ds_accel_cpu import _binding
from ds_core.errors import AcceleratorError, did_you_mean
from ds_core.ops.native import KernelLibrary, load

__all__ = ["choose_level", "library", "library_path", "load_level", "usable_levels"]

VARIABLE = "DS_CPU_ISA"


class Level(Protocol):
    """What the probe says of one level."""

    @property
    def name(self) -> str:
        """As in the name of the library."""

    @property
    def usable(self) -> bool:
        """The processor has it and the operating system saves its registers."""

    @property
    def reason(self) -> str:
        """What is missing."""


def usable_levels() -> list[str]:
    """Levels that this machine runs, best first. Asks the operating system for nothing."""
    return [level.name for level in _binding.levels() if level.usable]


def choose_level(
    levels: Sequence[Level], environ: Mapping[str, str], request: Callable[[str], str] = _binding.request_permission
) -> str:
    """The level to use: what ``DS_CPU_ISA`` says, else the best usable one.

    Args:
        levels: best first.
        environ: variables of the process.
        request: asks the operating system for permission to run a level, and is called for no level but those that
            would be used; returns why not, or nothing.

    Raises:
        AcceleratorError: the level asked for is unknown or not usable here, or none is usable.
    """
    asked = environ.get(VARIABLE, "")
    if asked:
        return _level_asked_for(asked, levels, request)
    refused = {}
    for level in levels:
        refused[level.name] = request(level.name) if level.usable else level.reason
        if not refused[level.name]:
            return level.name
    raise AcceleratorError(
        f"no kernel library of ds-accel-cpu runs here: the machine {refused[levels[-1].name]}. Uninstall ds-accel-cpu, "
        "or set DS_PLUGINS_DISABLE=ds-accel-cpu; ds-core's references then serve."
    )


def _level_asked_for(asked: str, levels: Sequence[Level], request: Callable[[str], str]) -> str:
    known = {level.name: level for level in levels}
    usable = [level.name for level in levels if level.usable]
    if asked not in known:
        here = f"Supported here: {', '.join(usable) or 'none'}."
        raise AcceleratorError(f"{VARIABLE}={asked} is not a level of ds-accel-cpu.{did_you_mean(asked, known)} {here}")
    reason = request(asked) if asked in usable else known[asked].reason
    if reason:
        others = [name for name in usable if name != asked]
        raise AcceleratorError(
            f"{VARIABLE}={asked} cannot run here: the machine {reason}. Supported here: {', '.join(others) or 'none'}."
        )
    return asked


def library_path(level: str) -> Path:
    """Where the library of a level was installed."""
    return Path(str(importlib.resources.files("ds_accel_cpu") / "lib" / f"libdsk_cpu_{level}.so"))


def load_level(level: str) -> KernelLibrary:
    """The library of a level, with the operating system's permission to run it.

    Raises:
        AcceleratorError: the level is unknown, or cannot run here.
        PluginError: the library is missing or does not fit this ds-core.
    """
    reason = _binding.request_permission(level)
    if reason:
        raise AcceleratorError(
            f"level {level} of ds-accel-cpu cannot run here: the machine {reason}. Supported here: "
            f"{', '.join(usable_levels()) or 'none'}."
        )
    return load(library_path(level))


@functools.cache
def library() -> KernelLibrary:
    """The library of this process, loaded once.

    Raises:
        AcceleratorError: no level can be chosen.
        PluginError: the library is missing or does not fit this ds-core.
    """
    return load_level(choose_level(_binding.levels(), os.environ))
