"""This project's own format among those that `ds_core.checkpoint.sources` knows."""

from __future__ import annotations

import os
from pathlib import Path

from ds_core.checkpoint.storage.files import MANIFEST, data_name
from ds_core.checkpoint.storage.folder import by_age, complete, find, newest, tags
from ds_core.checkpoint.storage.reader import CheckpointReader
from ds_core.errors import CheckpointError

__all__ = ["detect", "older", "open_native"]


def detect(directory: Path, tag: str | None) -> str | None:
    """The tag, where there is a checkpoint of this format under it."""
    # Data without a manifest is of this format, too, and so is a manifest that is no file: `open_native` says so.
    names = (MANIFEST, data_name(0))
    known = [found for found, path in tags(directory).items() if any(os.path.lexists(path / name) for name in names)]
    if tag is not None:
        return tag if tag in known else None
    return newest(directory) if known else None


def open_native(directory: Path, tag: str, strict: bool) -> CheckpointReader:
    """The checkpoint `tag`.

    Raises:
        CheckpointError: it is damaged; offers the newest of the others.
    """
    try:
        return CheckpointReader(find(directory, tag), strict=strict)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{older(directory, tag)}") from None


def older(directory: Path, tag: str) -> str:
    """What else could be loaded, to end a message with."""
    others = [name for name in by_age(complete(directory)) if name != tag]
    return f"; an older complete checkpoint is there: load it with tag={others[-1]!r}" if others else ""
