"""Names of a checkpoint folder, durable writes of small files, and whole reads.

Layout
    <dir>/<tag>/manifest.json              everything but the tensors' bytes (`ds_core.checkpoint.storage.manifest`)
    <dir>/<tag>/rank-00000.safetensors     the pieces of tensors one rank wrote
    <dir>/latest                           the tag of the newest checkpoint saved with ``save_latest``
    <dir>/.<tag>.<id>.<state>              a checkpoint on its way in (``writing``) or out (``replaced``, ``deleting``)
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.errors import CheckpointError

__all__ = [
    "LATEST",
    "MANIFEST",
    "check_tag",
    "data_name",
    "naming",
    "read_whole",
    "to_json",
    "write_all",
    "write_durably",
    "write_visibly",
]

MANIFEST = "manifest.json"
LATEST = "latest"


def data_name(rank: int) -> str:
    """Name of the file with the pieces that `rank` writes."""
    return f"rank-{rank:05d}.safetensors"


def check_tag(tag: str) -> str:
    """`tag`, if it can name a folder.

    Raises:
        CheckpointError: it is empty, starts with a dot, holds a separator, or is too long for a name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*", tag) or tag == LATEST:
        raise CheckpointError(
            f"checkpoint tag {tag!r} cannot name a directory; use letters, digits and _ . = + - and no leading dot"
        )
    if len(tag) > 200:
        raise CheckpointError(f"checkpoint tag {tag[:20]!r}... has {len(tag)} characters; 200 are allowed")
    return tag


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the path into errors of the system that do not have one, as those of open files."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_all(disk: Disk, fd: int, view: memoryview, offset: int) -> None:
    """Writes all of `view`, however little the system takes at a time."""
    done = 0
    while done < len(view):
        done += disk.write(fd, view[done:], offset + done)


def write_visibly(path: Path, payload: bytes, disk: Disk = DISK) -> None:
    """Writes a file so that who looks sees all of it or nothing; it need not outlive the machine.

    The rename is the last thing done: the folder may be another's from that moment on.
    """
    disk.rename(_write_temporary(path, payload, disk, sync=False), path)


def write_durably(path: Path, payload: bytes, disk: Disk = DISK) -> None:
    """Writes a file so that it is whole or absent after a crash: temporary name, fsync, rename, fsync of the folder."""
    disk.rename(_write_temporary(path, payload, disk, sync=True), path)
    disk.sync_folder(path.parent)


def _write_temporary(path: Path, payload: bytes, disk: Disk, *, sync: bool) -> Path:
    """A file beside `path` with the content it shall have; none is left where it could not be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    disk.remove(temporary)
    fd = disk.create(temporary)
    try:
        with naming(temporary):
            write_all(disk, fd, memoryview(payload), 0)
            if sync:
                disk.sync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise
    finally:
        disk.close(fd)
    return temporary


def read_whole(path: Path, limit_bytes: int, disk: Disk = DISK, *, follow: bool = False) -> bytes:
    """The content of a regular file; a symbolic link is an error unless `follow` is set.

    Raises:
        CheckpointError: it is longer than `limit_bytes`, or not a regular file.
        OSError: it cannot be read.
    """
    fd = disk.open(path, follow=follow)
    try:
        found = bytearray()
        chunk = memoryview(bytearray(1 << 20))
        if disk.length(fd) > limit_bytes:
            raise CheckpointError(f"{path} is longer than {limit_bytes} bytes, which no such file is")
        while len(found) <= limit_bytes and (count := disk.read(fd, chunk, len(found))):
            found += chunk[:count]
        return bytes(found)
    finally:
        disk.close(fd)


def to_json(value: Any, what: str) -> str:
    """JSON text of `value`.

    Raises:
        CheckpointError: `value` holds something JSON cannot; the message says where.
    """
    try:
        return json.dumps(value, separators=(", ", ": "))
    except (TypeError, ValueError) as error:
        where = _offender(value, what)
        raise CheckpointError(
            f"{where} cannot be written as JSON ({error}); keep numbers, strings, lists and dicts there"
        ) from None


def _offender(value: Any, path: str) -> str:
    if isinstance(value, dict):
        for key, item in value.items():
            try:
                json.dumps({key: item})
            except (TypeError, ValueError):
                return _offender(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            try:
                json.dumps(item)
            except (TypeError, ValueError):
                return _offender(item, f"{path}[{index}]")
    return f"{path} ({type(value).__name__})"
