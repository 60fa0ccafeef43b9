"""Numbers of bytes and elements as people read them, and plain tables."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["size", "table"]

UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def size(value: float, step: int = 1000) -> str:
    """Three digits and a decimal unit: ``1.25 GB`` is 1,250,000,000 bytes."""
    for unit in UNITS:
        if abs(value) < step or unit == UNITS[-1]:
            break
        value /= step
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.2f} {unit}"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns with two blanks between them, those in `right` flush right; one line a row."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
