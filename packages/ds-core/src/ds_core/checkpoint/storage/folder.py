"""What is in a folder of checkpoints: complete ones, the newest, and what interrupted saves left behind.

A checkpoint is complete when its folder has a manifest, for a folder gets its tag as its name only when everything in
it is durable. While a tag is being replaced its former folder has the name ``.<tag>.<id>.replaced``; a crash at that
moment leaves only this one, which then stands for the tag.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import LATEST, MANIFEST, check_tag, read_whole
from ds_core.errors import CheckpointError

__all__ = [
    "Leftover",
    "by_age",
    "check_unused",
    "complete",
    "find",
    "identity",
    "latest_tag",
    "leftovers",
    "newest",
    "owner",
    "stands_in",
    "tags",
    "working_folder",
]

logger = logging.getLogger(__name__)

OWNER = "owner.json"
_HIDDEN = re.compile(r"\.(?P<tag>.+)\.(?P<id>[0-9a-f]+)\.(?P<state>writing|replaced|deleting)")
_HEAD_BYTES = 4096
_ID = re.compile(rb'"id": "([^"]*)"')
_CREATED = re.compile(rb'"created": "([^"]*)"')
_IS_LATEST = re.compile(rb'"is_latest": (true|false)')


class Leftover(NamedTuple):
    """A hidden folder: its tag, and whether it was being ``writing``, ``replaced`` or ``deleting``."""

    path: Path
    tag: str
    state: str


def working_folder(root: Path, tag: str, identity: str, state: str = "writing") -> Path:
    """The name of a checkpoint on its way in or out."""
    return root / f".{tag}.{identity}.{state}"


def leftovers(root: Path) -> list[Leftover]:
    """Hidden folders of saves that are under way or were interrupted."""
    found = []
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        match = _HIDDEN.fullmatch(entry.name)
        if match and entry.is_dir() and not entry.is_symlink():
            found.append(Leftover(entry, match["tag"], match["state"]))
    return found


def tags(root: Path) -> dict[str, Path]:
    """Folder of every tag; of one that was being replaced when a save was interrupted, the former one."""
    found = {}
    for leftover in leftovers(root):
        if leftover.state == "replaced":
            found[leftover.tag] = leftover.path
    for entry in sorted(root.glob("[!.]*")) if root.is_dir() else ():
        if entry.is_dir():
            found[entry.name] = entry
    return found


def complete(root: Path) -> dict[str, Path]:
    """Folder of every complete checkpoint, by tag, but for links that lead out of the folder."""
    return {tag: path for tag, path in tags(root).items() if (path / MANIFEST).is_file() and not _leads_out(path)}


def _leads_out(path: Path) -> bool:
    return path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve())


def find(root: Path, tag: str) -> Path:
    """The folder of a tag.

    Raises:
        CheckpointError: there is none, and the message lists those there are; or it leads out of the folder.
    """
    known = tags(root)
    if check_tag(tag) not in known:
        raise CheckpointError(f"no checkpoint {tag!r} in {root}; there are: {', '.join(known) or 'none'}")
    if _leads_out(known[tag]):
        raise CheckpointError(f"{known[tag]} is a symbolic link out of {root}; load it from where it is")
    return known[tag]


def latest_tag(directory: str | Path) -> str | None:
    """The tag that ``latest`` names, or None when there is no such file.

    Raises:
        CheckpointError: it does not hold a tag.
    """
    path = Path(directory) / LATEST
    try:
        return check_tag(read_whole(path, 4096).decode().strip())
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, CheckpointError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; pass the tag to load, or write it into that file") from None


def newest(directory: str | Path) -> str | None:
    """The tag to load when none is given; None when nothing was saved with ``save_latest``.

    It is the one that ``latest`` names, unless a later checkpoint is complete: a save was then interrupted between the
    two. A file ``latest`` that was written after all of them is somebody's choice and is followed.

    Raises:
        CheckpointError: ``latest`` is damaged, or names a checkpoint that is not there; names the newest there is.
    """
    root = Path(directory)
    found = complete(root)
    candidates = {tag: made for tag, path in found.items() if (made := _made(path)) is not None}
    last = max(candidates, key=lambda tag: candidates[tag]) if candidates else None
    offer = f"; the newest complete checkpoint is {last!r}, load it with tag={last!r}" if last else ""
    try:
        named = latest_tag(root)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{offer}") from None
    if named is None:
        return last
    if named not in tags(root):
        raise CheckpointError(f"{root / LATEST} names {named!r}, which is not there{offer}")
    if last is None or last == named or candidates.get(named, "") >= candidates[last]:
        return named
    if (root / LATEST).stat().st_mtime_ns >= (found[last] / MANIFEST).stat().st_mtime_ns:
        return named
    logger.warning("%s still names %r; %r was completed later and is taken", root / LATEST, named, last)
    return last


def by_age(found: Mapping[str, Path]) -> list[str]:
    """The tags of complete checkpoints, the one that was written last at the end."""
    return sorted(found, key=lambda tag: ((found[tag] / MANIFEST).stat().st_mtime_ns, tag))


def identity(path: Path) -> str | None:
    """Which save a checkpoint is of, as its manifest says; None where there is no manifest."""
    try:
        return _member(_head(path), _ID)
    except OSError:
        return None


def _made(path: Path) -> str | None:
    """When a checkpoint was written, as its manifest says; None for one saved with ``save_latest=False``."""
    head = _head(path)
    return _member(head, _CREATED) if _member(head, _IS_LATEST) == "true" else None


def _head(path: Path) -> bytes:
    """The beginning of a manifest; empty where it is no regular file, which is said by who opens it."""
    try:
        fd = DISK.open(path / MANIFEST)
    except CheckpointError:
        return b""
    try:
        head = bytearray(_HEAD_BYTES)
        return bytes(head[: DISK.read(fd, memoryview(head), 0)])
    finally:
        DISK.close(fd)


def _member(head: bytes, pattern: re.Pattern[bytes]) -> str | None:
    found = pattern.search(head)
    return found[1].decode(errors="replace") if found is not None else None


def stands_in(leftover: Leftover) -> bool:
    """Whether a hidden folder stands for its tag: it was being replaced, and its successor never came."""
    return leftover.state == "replaced" and tags(leftover.path.parent)[leftover.tag] == leftover.path


# --- who writes ---------------------------------------------------------------------------------------------------


def owner() -> dict[str, Any]:
    """This process, as a working folder names who writes in it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def check_unused(leftover: Leftover, disk: Disk = DISK) -> None:
    """Makes sure that nobody on this machine writes in a working folder.

    Raises:
        CheckpointError: a living process does.
    """
    try:
        who = json.loads(read_whole(leftover.path / OWNER, 1 << 16, disk))
        if who["host"] != socket.gethostname() or who["pid"] == os.getpid():
            return
        alive = psutil.Process(who["pid"]).create_time() == who["started"]
    except (OSError, ValueError, KeyError, TypeError, CheckpointError, psutil.Error):
        return
    if alive:
        raise CheckpointError(
            f"process {who['pid']} is writing the checkpoint {leftover.tag!r} into the same folder "
            f"({leftover.path}); give every job a folder of its own, or end that process"
        )
