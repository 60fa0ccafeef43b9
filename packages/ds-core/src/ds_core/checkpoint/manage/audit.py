"""Checks every byte of a checkpoint and names each file that is not what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ds_core.checkpoint.sources import open_source
from ds_core.checkpoint.storage.files import MANIFEST
from ds_core.checkpoint.storage.folder import complete
from ds_core.checkpoint.storage.reader import CheckpointReader, Damage
from ds_core.errors import CheckpointError

__all__ = ["Audit", "audit", "audited_bytes"]


class Audit(NamedTuple):
    """What was found: the checkpoint, its format, its files and bytes, and the damage."""

    tag: str
    format: str
    files: int
    nbytes: int
    damages: list[Damage]


def audit(root: Path, tag: str, told: Callable[[int], Any] = lambda nbytes: None) -> Audit:
    """Reads everything; the first damage of each file is listed, and all missing files are.

    Args:
        root: folder of checkpoints.
        tag: one of them.
        told: gets the bytes that were looked at, block by block, where the format has hashes of blocks.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    path = complete(root).get(tag)
    if path is None:
        return _foreign(root, tag)
    try:
        reader = CheckpointReader(path, check_files=False)
    except CheckpointError as error:
        return Audit(tag, "ds", 0, 0, [Damage(MANIFEST, str(error))])
    found: dict[str, Damage] = {}
    for damage in reader.damages(told=told):
        found.setdefault(damage.file, damage)
    files = reader.manifest.files
    return Audit(tag, "ds", len(files), sum(file.bytes for file in files.values()), list(found.values()))


def audited_bytes(root: Path, tag: str) -> int:
    """What `audit` will tell of; 0 where the format does not say."""
    path = complete(root).get(tag)
    try:
        manifest = CheckpointReader(path, check_files=False).manifest if path is not None else None
    except CheckpointError:
        manifest = None
    return sum(file.bytes for file in manifest.files.values()) if manifest is not None else 0


def _foreign(root: Path, tag: str) -> Audit:
    source = open_source(root, tag or None)
    files = [path for path in source.path.iterdir() if path.is_file()]
    found = []
    try:
        source.verify()
    except CheckpointError as error:
        found.append(Damage(source.path.name, str(error)))
    finally:
        source.close()
    return Audit(tag, source.format, len(files), sum(path.stat().st_size for path in files), found)
