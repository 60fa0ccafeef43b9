"""Saves of this process that are not on disk yet, for who must wait for them without being able to save itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ds_core.checkpoint.saving.background import Pending

__all__ = ["UNDER_WAY", "settle"]

UNDER_WAY: set[Pending] = set()
"""A save enters when it begins and leaves when it is on disk, or has failed."""


def settle(root: Path) -> None:
    """Waits for all saves of this process into a folder, of whichever engine; their errors stay theirs to tell."""
    for pending in list(UNDER_WAY):
        if pending.job.root.absolute() == root.absolute():
            pending.join()
