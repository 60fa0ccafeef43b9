"""Names, durable writes and the manifest of a checkpoint directory.

Layout of ``<dir>/<tag>/``
    manifest.json              schema version, counters, client state, names and sizes of all other files
    rank-00000.safetensors     fragments of logical tensors, 1-D, named ``t0``, ``t1``, ...
    rank-00000.json            which fragment is which: key, shape, flat range; and JSON values of the parts
``<dir>/latest`` holds the tag of the newest complete checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ds_core.errors import CheckpointError

__all__ = ["FORMAT", "LATEST", "MANIFEST", "VERSION", "check_tag", "fsync_directory", "rank_stem", "write_durably"]

FORMAT = "ds-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"


def rank_stem(rank: int) -> str:
    """File name stem of what `rank` writes."""
    return f"rank-{rank:05d}"


def check_tag(tag: str) -> str:
    """`tag`, if it can name a directory.

    Raises:
        CheckpointError: it is empty, starts with a dot, or holds a separator.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*", tag):
        raise CheckpointError(
            f"checkpoint tag {tag!r} cannot name a directory; use letters, digits and _ . = + - and no leading dot"
        )
    return tag


def write_durably(path: Path, payload: bytes) -> None:
    """Writes a file so that it is whole or absent after a crash: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Makes renames and new names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any, what: str) -> bytes:
    """UTF-8 JSON of `value`.

    Raises:
        CheckpointError: `value` holds something JSON cannot; the message says where.
    """
    try:
        return json.dumps(value, indent=1, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        where = _offender(value, what)
        raise CheckpointError(
            f"{where} cannot be written as JSON ({error}); keep numbers, strings, lists and dicts there"
        ) from None


def _offender(value: Any, path: str) -> str:
    if isinstance(value, dict):
        for key, item in value.items():
            try:
                json.dumps({key: item})
            except (TypeError, ValueError):
                return _offender(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            try:
                json.dumps(item)
            except (TypeError, ValueError):
                return _offender(item, f"{path}[{index}]")
    return f"{path} ({type(value).__name__})"
