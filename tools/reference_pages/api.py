"""The page of the Python API: what ``ds_core`` offers, and what an engine does."""

from __future__ import annotations

import inspect
from typing import Any

import ds_core
from reference_pages.markdown import cell, code, first_line, prose, signature, table
from reference_pages.markdown import page as make_page


def page() -> str:
    """The page."""
    blocks = ["What a training program calls.", "## ds_core"]
    for name in sorted(ds_core.__all__):
        item = getattr(ds_core, name)
        if inspect.isfunction(item):
            blocks += [f"### {name}", f"```python\n{signature(name, item)}\n```", prose(item.__doc__ or "")]
    classes = [(name, item) for name in sorted(ds_core.__all__) if inspect.isclass(item := getattr(ds_core, name))]
    for name, item in classes:
        blocks += [f"## {name}", prose(item.__doc__ or ""), members(item)]
    return make_page("Python API", *blocks)


def members(owner: type) -> str:
    """Public methods and properties of a class and of its bases of ours."""
    rows: dict[str, list[str]] = {}
    for base in owner.__mro__:
        if not base.__module__.startswith("ds_"):
            continue
        for name, item in vars(base).items():
            if not name.startswith("_") and name not in rows:
                shown = member(name, item)
                if shown is not None:
                    rows[name] = shown
    return table(["member", "what the caller gets"], (rows[name] for name in sorted(rows)))


def member(name: str, item: Any) -> list[str] | None:
    """A row for one method or property; None for anything else."""
    if isinstance(item, property):
        return [code(name), cell(prose(first_line(item)))]
    function = item.__func__ if isinstance(item, classmethod | staticmethod) else item
    if not inspect.isfunction(function):
        return None
    parameters = [
        str(p).partition(":")[0] for key, p in inspect.signature(function).parameters.items() if key != "self"
    ]
    return [code(f"{name}({', '.join(parameters)})"), cell(prose(first_line(function)))]
