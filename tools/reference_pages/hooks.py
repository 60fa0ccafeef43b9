"""The page of hooks: every spec and the dataclasses hooks return."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import ds_core.hooks as specs
from ds_core.part import Part
from reference_pages.markdown import code, first_line, prose, signature, table
from reference_pages.markdown import page as make_page


def page() -> str:
    """The page."""
    functions = [item for name, item in vars(specs).items() if name.startswith("ds_") and inspect.isfunction(item)]
    entries = [item for item in vars(specs).values() if dataclasses.is_dataclass(item) and isinstance(item, type)]
    major, minor = specs.HOOK_API
    blocks = [
        f"Entry-point group `{specs.ENTRY_POINT_GROUP}`, version {major}.{minor} of the specs. A plugin states "
        f"`DS_HOOK_API = ({major}, {minor})` and marks its functions with `ds_core.hooks.hookimpl`.",
        table(["hook", "in short"], ([code(f.__name__), first_line(f)] for f in functions)),
        "## Hooks",
    ]
    for function in functions:
        blocks += [
            f"### {function.__name__}",
            f"```python\n{signature(function.__name__, function)}\n```",
            prose(function.__doc__ or ""),
        ]
    blocks.append("## What hooks return")
    for entry in entries:
        blocks += [f"### {entry.__name__}", prose(entry.__doc__ or ""), fields_of(entry)]
    blocks += ["## Engine parts", prose(Part.__doc__ or ""), part_methods()]
    return make_page("Hooks", *blocks)


def fields_of(entry: Any) -> str:
    """Fields of a dataclass with their types and defaults."""
    rows = []
    for field in dataclasses.fields(entry):
        if field.default is not dataclasses.MISSING:
            default = code(repr(field.default))
        elif field.default_factory is not dataclasses.MISSING:
            default = code(repr(field.default_factory()))
        else:
            default = "required"
        rows.append([code(field.name), code(field.type), default])
    return table(["field", "type", "default"], rows)


def part_methods() -> str:
    """What a part may override."""
    rows = [
        [code(name), first_line(item)]
        for name, item in vars(Part).items()
        if inspect.isfunction(item) and not name.startswith("_")
    ]
    return table(["method", "when"], rows)
