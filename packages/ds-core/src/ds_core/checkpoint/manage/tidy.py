"""Deletes by hand what training deletes by policy: older checkpoints, and what interrupted saves left behind."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ds_core.checkpoint.manage.catalog import folder_bytes, writer_of
from ds_core.checkpoint.saving.retention import Retention, doomed, prune
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import MANIFEST
from ds_core.checkpoint.storage.folder import by_age, complete, leftovers, newest, stands_in
from ds_core.checkpoint.storage.manifest import read_manifest
from ds_core.errors import CheckpointError

__all__ = ["Tidied", "tidy"]


class Tidied(NamedTuple):
    """What was done, or would be: folders deleted, tags restored, folders left with the reason, and bytes freed."""

    deleted: list[str]
    restored: list[str]
    left: dict[str, str]
    nbytes: int


def tidy(
    root: Path,
    keep_last: int | None,
    keep_every: int | None = None,
    *,
    remove_leftovers: bool = False,
    dry_run: bool = False,
    disk: Disk = DISK,
) -> Tidied:
    """Deletes complete checkpoints but the newest few and milestones, and hidden folders nobody writes in.

    The newest checkpoint and the one that ``latest`` names are never deleted.

    Args:
        root: folder of checkpoints.
        keep_last: newest ones to keep; None: all.
        keep_every: keep those whose number of steps is a multiple of this as well.
        remove_leftovers: delete hidden folders; one that stands for its tag gets that as its name again.
        dry_run: delete nothing.
        disk: operations on files.

    Raises:
        CheckpointError: `root` is no folder of checkpoints, its ``latest`` is damaged, or the newest checkpoint is.
        OSError: something cannot be deleted.
    """
    if not root.is_dir():
        raise CheckpointError(f"{root} is {'not a folder' if root.exists() else 'not there'}; name one of checkpoints")
    if (root / MANIFEST).is_file():
        raise CheckpointError(f"{root} is one checkpoint; name the folder that holds it")
    done = Tidied([], [], {}, 0)
    freed_bytes = 0
    if remove_leftovers:
        for leftover in leftovers(root):
            if stands_in(leftover):
                done.restored.append(leftover.tag)
                if not dry_run:
                    disk.rename(leftover.path, root / leftover.tag)
                continue
            writer = writer_of(leftover)
            if writer is not None:
                done.left[leftover.path.name] = writer
                continue
            freed_bytes += folder_bytes(leftover.path)
            done.deleted.append(leftover.path.name)
            if not dry_run:
                disk.remove_folder(leftover.path)
    retention, latest = Retention(keep_last, keep_every), newest(root) if keep_last is not None else None
    gone = doomed(root, retention, keep=latest)
    if gone:
        _check_newest(root)
    freed_bytes += sum(map(folder_bytes, gone))
    done.deleted.extend(path.name for path in gone)
    if not dry_run:
        prune(root, retention, keep=latest, disk=disk)
    return done._replace(nbytes=freed_bytes)


def _check_newest(root: Path) -> None:
    """The newest checkpoint must be whole before others that could take its place are deleted."""
    found = complete(root)
    last = by_age(found)[-1]
    try:
        read_manifest(found[last])
    except CheckpointError as error:
        raise CheckpointError(
            f"nothing was deleted, for the newest checkpoint is damaged: {error}; find out which are whole with "
            f"`ds checkpoint verify {root} --all` and delete {found[last]} by hand"
        ) from None
