"""The page of errors: the tree of each package, and every message it is raised with."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ds_core.errors import DsError
from ds_core.hooks import ENTRY_POINT_GROUP
from reference_pages.markdown import cell, code, first_line, table
from reference_pages.markdown import page as make_page


class Site(NamedTuple):
    """One ``raise``: which class, where, and the message with its holes."""

    error: str
    module: str
    message: str


def page() -> str:
    """The page."""
    names = packages()
    classes = {name: cls for package in names for name, cls in error_classes(package).items()}
    sites = sorted({site for package in names for site in raise_sites(package, set(classes))})
    blocks = [
        "Every error raised on purpose is a `DsError`, and a `ValueError` or `RuntimeError` besides. A message says "
        "what, the value, what is allowed and the setting to change. In the messages below, braces stand for values.",
        "```text\n" + tree(DsError, classes) + "\n```",
    ]
    for name, cls in sorted(classes.items()):
        rows = [[code(site.message), code(site.module)] for site in sites if site.error == name]
        blocks += [f"## {name}", cell(first_line(cls)), table(["message", "raised in"], rows)]
    return make_page("Errors", *blocks)


def packages() -> list[str]:
    """Import names of ds-core and of the installed wheels of ours that plug into it."""
    found = {entry.module.partition(".")[0] for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return sorted(name for name in found if name.startswith("ds_"))


def error_classes(package: str) -> dict[str, type[DsError]]:
    """Errors a package defines in its ``errors`` module."""
    if importlib.util.find_spec(f"{package}.errors") is None:
        return {}
    module = importlib.import_module(f"{package}.errors")
    return {
        name: item
        for name, item in vars(module).items()
        if inspect.isclass(item) and issubclass(item, DsError) and item.__module__ == module.__name__
    }


def tree(root: type[DsError], classes: dict[str, type[DsError]], depth: int = 0) -> str:
    """The classes below `root`, indented."""
    below = [item for item in classes.values() if root in item.__bases__]
    others = [base.__name__ for base in root.__bases__ if not issubclass(base, DsError) and base is not Exception]
    line = "    " * depth + root.__name__ + (f" ({', '.join(others)})" if others else "")
    return "\n".join([line, *(tree(item, classes, depth + 1) for item in below)])


def raise_sites(package: str, known: set[str]) -> Iterator[Site]:
    """Every place in a package that makes one of the known errors with a message in sight."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise LookupError(f"package {package} is registered but cannot be found")
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        module = ".".join([package, *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield from (Site(error, module, message) for error, message in messages_in(node, known) if message)


def messages_in(node: ast.AST, known: set[str]) -> Iterator[tuple[str, str]]:
    """The errors a piece of code makes, with messages; config findings and section checks become a ConfigError."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        if node.func.id in known:
            yield node.func.id, template(node.args[0])
        elif node.func.id == "Problem" and len(node.args) > 1:
            yield "ConfigError", template(node.args[1])
    elif isinstance(node, ast.FunctionDef) and node.name == "check":
        for item in ast.walk(node):
            if isinstance(item, ast.Yield) and item.value is not None:
                yield "ConfigError", template(item.value)


def template(node: ast.expr) -> str:
    """The text of a message, with values as names in braces; empty when it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(hole(item) if isinstance(item, ast.FormattedValue) else template(item) for item in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = template(node.left), template(node.right)
        return f"{left or '{…}'}{right or '{…}'}" if left or right else ""
    return ""


def hole(value: ast.FormattedValue) -> str:
    """A short name for the value in an f-string."""
    text = ast.unparse(value.value)
    name = re.sub(r"^self\.", "", text)
    return "{" + (name if re.fullmatch(r"[\w.]{1,40}", name) else "…") + "}"
