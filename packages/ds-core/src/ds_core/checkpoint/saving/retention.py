"""Which checkpoints are kept: the newest few, and every so many steps one for good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import MANIFEST, read_whole
from ds_core.checkpoint.storage.folder import by_age, complete, latest_tag, working_folder
from ds_core.checkpoint.storage.manifest import LIMIT_BYTES
from ds_core.errors import CheckpointError

__all__ = ["Retention", "doomed", "prune"]


class Retention(NamedTuple):
    """The policy.

    Attributes:
        keep_last: number of newest checkpoints to keep; None: all.
        keep_every: keep those whose number of steps is a multiple of this as well; None: none.
    """

    keep_last: int | None = None
    keep_every: int | None = None


def doomed(root: Path, retention: Retention, *, keep: str | None = None) -> list[Path]:
    """Complete checkpoints the policy does not keep, oldest first.

    Never `keep`, the one that ``latest`` names, links, nor what they lead to.
    """
    if retention.keep_last is None:
        return []
    all_found = complete(root)
    found = {tag: path for tag, path in all_found.items() if not path.is_symlink()}
    order = by_age(found)
    kept = {*order[-retention.keep_last :], keep, latest_tag(root)}
    kept |= {path.resolve().name for path in all_found.values() if path.is_symlink()}
    return [found[tag] for tag in order if tag not in kept and not _is_milestone(found[tag], retention.keep_every)]


def prune(root: Path, retention: Retention, *, keep: str | None = None, disk: Disk = DISK) -> list[Path]:
    """Deletes what the policy does not keep; what was deleted.

    Each is renamed first, durably, so that none is ever seen half deleted.

    Raises:
        OSError: one cannot be deleted.
    """
    gone = doomed(root, retention, keep=keep)
    hidden = [working_folder(root, path.name.lstrip("."), "0", "deleting") for path in gone]
    for path, out in zip(gone, hidden, strict=True):
        disk.remove_folder(out)
        disk.rename(path, out)
    if gone:
        disk.sync_folder(root)
    for out in hidden:
        disk.remove_folder(out)
    return gone


def _is_milestone(path: Path, every: int | None) -> bool:
    if every is None:
        return False
    try:
        steps = json.loads(read_whole(path / MANIFEST, LIMIT_BYTES))["counters"]["global_steps"]
        return bool(steps % every == 0)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CheckpointError):
        return True  # what cannot be read is not ours to delete
