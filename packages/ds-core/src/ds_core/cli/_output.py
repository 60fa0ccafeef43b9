"""Tables and JSON on standard output: drawn for a terminal, plain columns for everything else."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["write_json", "write_line", "write_table"]


def write_line(text: str = "") -> None:
    """Writes one line."""
    sys.stdout.write(text + "\n")


def write_json(value: Any) -> None:
    """Writes a JSON document."""
    write_line(json.dumps(value, indent=2))


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Writes a table: one line a row and two blanks between columns unless standard output is a terminal."""
    if sys.stdout.isatty():
        _draw(columns, rows, title)
        return
    if title:
        write_line(f"# {title}")
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        write_line("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a reason may hold what rich reads as markup
    Console().print(table)
