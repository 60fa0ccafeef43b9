"""Sections flattened to dotted keys and JSON values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ds_core.config.problems import dotted

if TYPE_CHECKING:
    from ds_core.config.section import Section

__all__ = ["leaves", "to_plain"]


def to_plain(value: Any) -> Any:
    """`value` as JSON: sections to dicts, tuples to lists, paths to strings."""
    from ds_core.config.section import Section

    if isinstance(value, Section):
        return {name: to_plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def leaves(section: Section, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted key and JSON value of everything in `section` that holds no further keys."""
    for name in type(section).model_fields:
        yield from _leaves_of(getattr(section, name), dotted(prefix, name))


def _leaves_of(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    from ds_core.config.section import Section

    if isinstance(value, Section):
        yield from leaves(value, key)
    elif isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves_of(item, dotted(key, name))
    else:
        yield key, to_plain(value)
