"""What a folder holds for who looks at it: checkpoints of any format, and what interrupted saves left behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ds_core.checkpoint.saving.liveness import BEAT_S
from ds_core.checkpoint.sources import recognize
from ds_core.checkpoint.storage.files import MANIFEST
from ds_core.checkpoint.storage.folder import Leftover, check_unused, leftovers, newest, tags
from ds_core.checkpoint.storage.manifest import read_manifest
from ds_core.errors import CheckpointError

__all__ = ["Catalog", "Listed", "Remains", "catalog", "folder_bytes", "split_tag", "writer_of"]

COMPLETE, DAMAGED, UNKNOWN = "complete", "damaged", "not a checkpoint"


@dataclass(frozen=True, slots=True)
class Listed:
    """A checkpoint.

    Attributes:
        tag: its name; ``""`` for a folder of a format without tags.
        format: name of the format; ``""`` where none recognizes it.
        state: `COMPLETE`, `DAMAGED` or `UNKNOWN`.
        is_latest: whether a load without a tag takes it.
        step: updates taken; None where only opening it would tell.
        created: when, ISO 8601.
        nbytes: of its files.
        ranks: processes that wrote it; None where the format does not say.
        note: what is wrong.
    """

    tag: str
    format: str
    state: str
    is_latest: bool
    step: int | None
    created: str
    nbytes: int
    ranks: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Remains:
    """A hidden folder of a save: its name, tag, state (``writing``, ``replaced`` or ``deleting``), size and age."""

    name: str
    tag: str
    state: str
    nbytes: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Catalog:
    """Checkpoints from the oldest to the newest, remains of saves, and why none is the latest where that is wrong."""

    checkpoints: Sequence[Listed]
    remains: Sequence[Remains]
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def catalog(root: Path, only: str | None = None) -> Catalog:
    """What `root` holds, or the checkpoint `only` of it; nothing of the tensors is read.

    Raises:
        CheckpointError: it is no folder.
    """
    if not root.is_dir():
        raise CheckpointError(f"{root} is {'not a folder' if root.exists() else 'not there'}; name one of checkpoints")
    latest, problem = _latest(root)
    whole = recognize(root) if not problem else None
    if whole is not None and whole.tag == "":
        size, when = folder_bytes(root), _changed(root)
        return Catalog([Listed("", whole.format, COMPLETE, True, None, when, size, None)], [])
    # A job may be saving into the folder: what vanishes while it is looked at is left out.
    found = []
    for tag, path in tags(root).items():
        if only in (None, tag):
            with contextlib.suppress(FileNotFoundError):
                found.append(_listed(root, tag, path, latest))
    found.sort(key=lambda row: (row.created, row.tag))
    remains = []
    for left in leftovers(root) if only is None else ():
        with contextlib.suppress(FileNotFoundError):
            idle_s = max(0.0, time.time() - _last_change(left.path))
            remains.append(Remains(left.path.name, left.tag, left.state, folder_bytes(left.path), idle_s))
    return Catalog(found, remains, problem)


def split_tag(directory: Path, tag: str | None) -> tuple[Path, str | None]:
    """The folder of checkpoints and the tag, where `directory` names the folder of one checkpoint itself."""
    if tag is None and (directory / MANIFEST).is_file():
        whole = directory.absolute()
        return whole.parent, whole.name
    return directory, tag


def folder_bytes(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(size for size, _ in _files(path))


def writer_of(leftover: Leftover) -> str | None:
    """Who is writing in a hidden folder, or None when nobody is.

    A process of this machine is asked for; ranks of any machine move the times of their ``.alive`` files on, which
    takes a moment to see.
    """
    try:
        check_unused(leftover)
    except CheckpointError as error:
        return str(error)
    before = _beats(leftover.path)
    if before:
        time.sleep(3 * BEAT_S)
        moved = sorted(name for name, beat in _beats(leftover.path).items() if before.get(name) != beat)
        if moved:
            return f"{moved[0]} in {leftover.path} is moved on by a rank that writes there"
    return None


def _beats(path: Path) -> dict[str, int]:
    found = {}
    for beat in path.glob("*.alive"):
        try:
            found[beat.name] = beat.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def _latest(root: Path) -> tuple[str | None, str]:
    try:
        tag = newest(root)
        if tag is None:
            other = recognize(root)
            tag = other.tag if other is not None else None
        return tag, ""
    except CheckpointError as error:
        return None, str(error)


def _listed(root: Path, tag: str, path: Path, latest: str | None) -> Listed:
    """Raises FileNotFoundError when the folder vanishes."""
    size, when, is_latest = folder_bytes(path), _changed(path), tag == latest
    if (path / MANIFEST).is_file():
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            path.stat()
            return Listed(tag, "ds", DAMAGED, is_latest, None, when, size, None, str(error))
        step = manifest.counters.get("global_steps")
        return Listed(tag, "ds", COMPLETE, is_latest, step, manifest.created, size, manifest.mesh.ranks)
    try:
        other = recognize(root, tag)
    except CheckpointError as error:
        return Listed(tag, "", DAMAGED, is_latest, None, when, size, None, str(error))
    if other is None:
        return Listed(tag, "", UNKNOWN, is_latest, None, when, size, None, f"no {MANIFEST}, nor of another format")
    return Listed(tag, other.format, COMPLETE, is_latest, None, when, size, None)


def _files(path: Path) -> Iterator[tuple[int, float]]:
    for entry in path.rglob("*"):
        try:
            found = entry.lstat()
        except FileNotFoundError:
            continue
        if not entry.is_dir():
            yield found.st_size, found.st_mtime


def _last_change(path: Path) -> float:
    return max((when for _, when in _files(path)), default=path.stat().st_mtime)


def _changed(path: Path) -> str:
    return datetime.fromtimestamp(_last_change(path), timezone.utc).isoformat(timespec="seconds")
