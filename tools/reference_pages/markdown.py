"""Small pieces of markdown, and docstrings read from source."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

GENERATED = "<!-- Generated from the code by tools/gen_reference.py. -->"


def cell(text: object) -> str:
    """Text that fits in one cell of a table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").strip()


def code(text: object) -> str:
    """Inline code, safe in a cell."""
    flat = cell(text)
    return f"`` {flat} ``" if "`" in flat else f"`{flat}`"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; an empty string when it has no rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *lines, ""]) if lines else ""


def page(title: str, *blocks: str) -> str:
    """A whole page."""
    return "\n\n".join([f"# {title}", GENERATED, *(block.strip("\n") for block in blocks if block.strip())]) + "\n"


def first_line(item: Any) -> str:
    """First line of a docstring."""
    return (inspect.getdoc(item) or "").partition("\n")[0]


def prose(text: str) -> str:
    """A docstring as markdown: reST's double backquotes become code, ``Args:`` blocks become lists."""
    out: list[str] = []
    in_block = False
    for line in inspect.cleandoc(text).splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields|Source):", line):
            out += ["", f"**{line[:-1]}**", ""]
            in_block = True
        elif in_block and (found := re.match(r"    (\w[\w.*, ]*): (.*)", line)):
            out.append(f"- `{found[1]}`: {found[2]}")
        elif in_block and line.startswith("    "):
            out.append("  " + line.strip())
        else:
            in_block = in_block and not line.strip()
            out.append(line)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(out))
    return re.sub(r"``([^`]+)``", r"`\1`", text).strip()


def attribute_docs(owner: type) -> dict[str, str]:
    """Strings that stand right under a class's annotated fields, bases first."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for statement, after in itertools.pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[statement.target.id] = inspect.cleandoc(after.value.value)
    return found


def signature(name: str, function: Any) -> str:
    """``name(arguments) -> result`` as written, over several lines when long."""
    shown = inspect.signature(function)
    parameters = [item for key, item in shown.parameters.items() if key != "self"]
    text = f"{name}{shown.replace(parameters=parameters)}".replace("'", "")
    if len(text) <= 100:
        return text
    lines: list[str] = []
    seen_star = False
    for item in parameters:
        if item.kind is item.KEYWORD_ONLY and not seen_star:
            lines.append("    *,")
        seen_star = seen_star or item.kind in (item.KEYWORD_ONLY, item.VAR_POSITIONAL)
        lines.append(f"    {item},".replace("'", ""))
    result = "" if shown.return_annotation is shown.empty else f" -> {shown.return_annotation}".replace("'", "")
    return "\n".join([f"{name}(", *lines, f"){result}"])
