"""What ``ds checkpoint`` tells people rather than programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_core.cli._output import write_line, write_table
from ds_core.cli._progress import human_bytes

if TYPE_CHECKING:
    from ds_core.checkpoint.manage.catalog import Catalog
    from ds_core.checkpoint.manage.compare import Difference

__all__ = ["write_catalog", "write_description", "write_difference"]

_SHOWN_VALUES = 50


def write_catalog(folder: Path, found: Catalog) -> None:
    """A table of checkpoints, then what interrupted saves left and how it is removed."""
    rows = [
        (
            row.tag or "(the folder)",
            "latest" if row.is_latest else "",
            _told(row.step),
            row.created[:19].replace("T", " "),
            human_bytes(row.nbytes),
            _told(row.ranks),
            row.format or "-",
            row.state,
        )
        for row in found.checkpoints
    ]
    if rows:
        write_table(("tag", "", "step", "created (UTC)", "size", "ranks", "format", "state"), rows)
    else:
        write_line(f"no checkpoint in {folder}")
    for row in found.checkpoints:
        if row.note:
            write_line(f"{row.tag}: {row.note}")
    if found.problem:
        write_line(f"latest: {found.problem}")
    for left in found.remains:
        size = human_bytes(left.nbytes)
        write_line(f"left behind, or under way: {left.name} ({left.state}, {size}, unchanged for {left.idle_s:.0f} s)")
    if found.remains:
        write_line(f"`ds checkpoint prune {folder} --leftovers` removes those that nobody writes")


def write_description(told: Mapping[str, Any]) -> None:
    """Facts a line each, then tables of tensors."""
    for name in ("path", "format", "tag", "id", "created"):
        if name in told:
            write_line(f"{name}: {told[name]}")
    for name in ("counters", "mesh", "plan", "tools", "client_state"):
        if told.get(name):
            write_line(f"{name}: {_short(told[name])}")
    for name, value in told["values"].items():
        write_line(f"values.{name}: {_short(value)}")
    for name, nbytes in told.get("files", {}).items():
        write_line(f"{name}: {human_bytes(nbytes)}")
    groups = [
        (
            group["group"],
            str(group["tensors"]),
            f"{group['elements']:,}",
            human_bytes(group["bytes"]),
            ", ".join(f"{name} {count}" for name, count in group["dtypes"].items()),
        )
        for group in told["groups"]
    ]
    write_table(("group", "tensors", "elements", "size", "dtypes"), groups)
    if "tensors" in told:
        rows = [
            (one["name"], one["dtype"], str(one["shape"]), human_bytes(one["bytes"]), str(len(one.get("pieces", [0]))))
            for one in told["tensors"]
        ]
        write_table(("tensor", "dtype", "shape", "size", "pieces"), rows)


def write_difference(found: Difference) -> None:
    """A line for each tensor and value that differs, and a last one that sums up."""
    rows = []
    for one in found.tensors:
        if one.unequal is None:
            rows.append((one.key, one.left or "missing", one.right or "missing", "", "", ""))
        else:
            apart, ulp = f"{one.unequal} of {one.numel}", "" if one.max_ulp is None else str(one.max_ulp)
            rows.append((one.key, one.left or "", one.right or "", apart, f"{one.max_abs:.3g}", ulp))
    if rows:
        write_table(("tensor", "A", "B", "unequal", "max abs", "max ulp"), rows)
    for value in found.values[:_SHOWN_VALUES]:
        write_line(f"{value.place}: {_short(value.left)} | {_short(value.right)}")
    if len(found.values) > _SHOWN_VALUES:
        write_line(f"and {len(found.values) - _SHOWN_VALUES} more values; --json lists all")
    if found:
        write_line(
            f"{len(found.tensors)} tensors and {len(found.values)} values differ; {found.compared} were compared"
        )
    else:
        write_line(f"equal: {found.compared} tensors")


def _told(number: int | None) -> str:
    return "-" if number is None else str(number)


def _short(value: Any, limit: int = 160) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."
