"""Typed configuration: one file, every value checked, resolved once, and traceable to where it came from.

`load` reads and checks, `resolve` fills what was left open and solves the batch, `Config` is the frozen result. A wheel
adds a section by subclassing `Section` and naming it in its ``ds_config_sections`` hook. pydantic is imported at the
first config that is read, torch never.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_core.config.batch import Batch
from ds_core.config.config import Config
from ds_core.config.facts import Auto, Facts, Origin
from ds_core.config.raw import RawConfig, load
from ds_core.config.resolve import resolve
from ds_core.config.schema import json_schema

if TYPE_CHECKING:
    from ds_core.config.section import DTypeName, Moved, Refused, Section

__all__ = [
    "Auto",
    "Batch",
    "Config",
    "DTypeName",
    "Facts",
    "Moved",
    "Origin",
    "RawConfig",
    "Refused",
    "Section",
    "json_schema",
    "load",
    "resolve",
]

_NEEDS_PYDANTIC = frozenset({"DTypeName", "Moved", "Refused", "Section"})


def __getattr__(name: str) -> Any:
    """Names whose module imports pydantic, at their first use."""
    if name in _NEEDS_PYDANTIC:
        from ds_core.config import section

        return getattr(section, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
