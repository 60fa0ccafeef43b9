"""Whether a disk has room for what is about to be written, asked before hours of writing rather than after."""

from __future__ import annotations

from pathlib import Path

from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.errors import CheckpointError

__all__ = ["check_room"]

_MARGIN_BYTES = 1 << 20  # manifests and what a file system keeps for itself


def check_room(path: Path, need_bytes: int, disk: Disk = DISK) -> None:
    """Makes sure that `need_bytes` more can be written at `path`, which need not be there yet.

    Raises:
        CheckpointError: they cannot.
    """
    there = path.absolute()
    while not there.exists():
        there = there.parent
    free_bytes = disk.free_bytes(there)
    if free_bytes < need_bytes + _MARGIN_BYTES:
        raise CheckpointError(
            f"{path} has room for {free_bytes:,} bytes and {need_bytes:,} are to be written; make room there (`ds "
            "checkpoint prune` and checkpoint.keep_last delete older checkpoints), or write to another disk"
        )
