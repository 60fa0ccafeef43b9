"""The folder a checkpoint is written in: made with its writer's name in it, removed after an interrupted save."""

from __future__ import annotations

from pathlib import Path

from ds_core.checkpoint.saving.under_way import settle
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import to_json, write_durably
from ds_core.checkpoint.storage.folder import OWNER, check_unused, leftovers, owner, stands_in

__all__ = ["begin_folder", "clear_leftovers"]


def begin_folder(work: Path, disk: Disk = DISK) -> None:
    """Makes a working folder, and durably the folder of checkpoints it is in, and says who writes there."""
    if not work.parent.exists():
        disk.make_folder(work.parent)
        disk.sync_folder(work.parent.parent)
    disk.make_folder(work)
    write_durably(work / OWNER, to_json(owner(), "owner").encode(), disk)


def clear_leftovers(root: Path, disk: Disk = DISK) -> list[Path]:
    """Removes what interrupted saves left behind; a former checkpoint whose successor never came gets its tag back.

    Saves of this process that are under way are waited for.

    Raises:
        CheckpointError: another living process writes in one of them.
        OSError: one cannot be removed.
    """
    settle(root)
    gone = []
    for leftover in leftovers(root):
        if stands_in(leftover):
            disk.rename(leftover.path, root / leftover.tag)
            continue
        if leftover.state == "writing":
            check_unused(leftover, disk)
        disk.remove_folder(leftover.path)
        gone.append(leftover.path)
    return gone
