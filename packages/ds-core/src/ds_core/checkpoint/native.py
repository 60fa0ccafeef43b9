"""This project's own format as a `Source`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_core.checkpoint.files import LATEST, MANIFEST, check_tag
from ds_core.checkpoint.reader import CheckpointReader

__all__ = ["NativeSource", "detect", "open_native"]


class NativeSource(CheckpointReader):
    """A checkpoint that `ds_core.checkpoint.save` wrote."""

    format = "ds"

    @property
    def counters(self) -> Mapping[str, int]:
        """Of the engine that saved."""
        counters: dict[str, int] = self.manifest["counters"]
        return counters

    @property
    def client_state(self) -> dict[str, Any]:
        """As it was saved."""
        state: dict[str, Any] = self.manifest["client_state"]
        return state

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Does nothing: this version of the format has no sums."""

    def close(self) -> None:
        """Lets go of open files."""
        self._open.clear()


def detect(directory: Path, tag: str | None) -> str | None:
    """The tag, where it has a manifest."""
    if tag is None:
        try:
            tag = (directory / LATEST).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
    elif (directory / tag).is_dir():
        check_tag(tag)
    return tag if tag and (directory / tag / MANIFEST).is_file() else None


def open_native(directory: Path, tag: str, strict: bool) -> NativeSource:
    """The checkpoint `tag`.

    Raises:
        CheckpointError: it is damaged.
    """
    return NativeSource(directory / check_tag(tag), strict=strict)
