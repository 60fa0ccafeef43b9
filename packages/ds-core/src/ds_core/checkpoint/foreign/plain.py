"""What of a foreign object is plain: JSON-able values, and the names of what is left out."""

from __future__ import annotations

from typing import Any

from ds_core.checkpoint.foreign.records import Record
from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.errors import CheckpointError

__all__ = ["number", "plain"]

MAX_DEPTH = 40
MAX_VALUES = 2_000_000
_ABSENT = object()


def plain(value: Any, name: str, left_out: list[str]) -> Any:
    """A JSON-able copy of `value`: tuples become lists, tensors of one element numbers; the rest is left out.

    Args:
        value: of a pickle; may refer to itself.
        name: of the value, for `left_out`.
        left_out: gets the name and the type of what is no plain value.

    Raises:
        CheckpointError: it is nested too deeply (`MAX_DEPTH`) or unfolds to too many values (`MAX_VALUES`).
    """
    budget = [MAX_VALUES]
    made = _plain(value, name, left_out, budget, 0)
    return None if made is _ABSENT else made


def _plain(value: Any, name: str, left_out: list[str], budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        what = f"deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else f"to more than {MAX_VALUES} values"
        raise CheckpointError(f"{name[:80]} is nested {what}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        items: dict[str, Any] = {}
        for key, item in value.items():
            inner = f"{name}[{key!r}]" if isinstance(key, str | int) else f"{name}[a key of type {_kind(key)}]"
            if not isinstance(key, str):
                left_out.append(inner)
                continue
            made = _plain(item, inner, left_out, budget, depth + 1)
            if made is not _ABSENT:
                items[key] = made
        return items
    if isinstance(value, list | tuple):
        listed = [_plain(v, f"{name}[{i}]", left_out, budget, depth + 1) for i, v in enumerate(value)]
        return [None if item is _ABSENT else item for item in listed]
    if isinstance(value, StoredTensor) and value.numel == 1:
        return number(value)
    left_out.append(f"{name} ({_kind(value)})")
    return _ABSENT


def number(value: Any) -> Any:
    """A number, also of a tensor of one element; anything else as it is."""
    return value.full().item() if isinstance(value, StoredTensor) and value.numel == 1 else value


def _kind(value: Any) -> str:
    if isinstance(value, Record):
        return value.name
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__
