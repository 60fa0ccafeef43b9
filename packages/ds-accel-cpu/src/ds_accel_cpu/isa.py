"""The instruction-set level this process runs, and the kernel library built for it.

Environment:
    DS_CPU_ISA: a level to use instead of the best one, for tests and for finding faults.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ds_accel_cpu import _binding
from ds_core.errors import AcceleratorError, did_you_mean
from ds_core.ops.native import KernelLibrary, load

__all__ = ["choose_level", "library", "library_path", "usable_levels"]

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
    """Levels that this machine runs, best first."""
    return [level.name for level in _binding.levels() if level.usable]


def choose_level(levels: Sequence[Level], environ: Mapping[str, str]) -> str:
    """The level to use: what ``DS_CPU_ISA`` says, else the best usable one.

    Raises:
        AcceleratorError: the level asked for is unknown or not usable here, or none is usable.
    """
    usable = [level.name for level in levels if level.usable]
    asked = environ.get(VARIABLE, "")
    if asked:
        known = {level.name: level for level in levels}
        here = f"Supported here: {', '.join(usable) or 'none'}."
        if asked not in known:
            raise AcceleratorError(
                f"{VARIABLE}={asked} is not a level of ds-accel-cpu.{did_you_mean(asked, known)} {here}"
            )
        if asked not in usable:
            raise AcceleratorError(f"{VARIABLE}={asked} cannot run here: the machine {known[asked].reason}. {here}")
        return asked
    if not usable:
        raise AcceleratorError(
            f"no kernel library of ds-accel-cpu runs here: the machine {levels[-1].reason}. Uninstall ds-accel-cpu, or "
            "set DS_PLUGINS_DISABLE=ds-accel-cpu; ds-core's references then serve."
        )
    return usable[0]


def library_path(level: str) -> Path:
    """Where the library of a level was installed."""
    return Path(str(importlib.resources.files("ds_accel_cpu") / "lib" / f"libdsk_cpu_{level}.so"))


@functools.cache
def library() -> KernelLibrary:
    """The library of this process, loaded once.

    Raises:
        AcceleratorError: no level can be chosen.
        PluginError: the library is missing or does not fit this ds-core.
    """
    return load(library_path(choose_level(_binding.levels(), os.environ)))
