"""The entries of a zip file that torch.save wrote: uncompressed, apart from each other, inside the file.

Source: PKWARE, .ZIP File Format Specification (APPNOTE.TXT) 6.3.10, sections 4.3.7, 4.3.12 and 4.3.14 to 4.3.16.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ds_core.checkpoint.foreign.window import Window
from ds_core.errors import CheckpointError

__all__ = ["is_zip", "read_entries"]

MAX_DIRECTORY_BYTES = 256 << 20
"""Longest list of entries that is read."""
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


class _Entry(NamedTuple):
    name: str
    header: int
    size: int


def is_zip(window: Window) -> bool:
    """Whether it begins as a zip file does."""
    return window.size >= 4 and window.read(0, 4) == _LOCAL


def read_entries(window: Window) -> dict[str, Window]:
    """Name and bytes of every entry.

    Raises:
        CheckpointError: no whole zip file, or one with compressed, encrypted, overlapping or oddly named entries.
    """
    path = window.path
    start, size, count = _directory_place(window)
    if size > MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"{path}: its zip directory has {size} bytes; at most {MAX_DIRECTORY_BYTES} are read")
    entries = _directory(window, window.part(start, size, "its zip directory").read(), count)
    found: dict[str, Window] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header < end:
            raise CheckpointError(f"{path}: zip entry {entry.name!r} overlaps the one before it")
        data = _data(window, entry)
        end = data.start - window.start + data.size
        if end > start:
            raise CheckpointError(f"{path}: zip entry {entry.name!r} reaches into the directory; the file is damaged")
        if entry.name in found:
            raise CheckpointError(f"{path}: zip entry {entry.name!r} is there twice")
        found[entry.name] = data
    return found


def _directory_place(window: Window) -> tuple[int, int, int]:
    """Start, size and number of entries of the central directory."""
    tail_size = min(window.size, _FULL16 + 22 + 20)
    tail = window.read(window.size - tail_size)
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        raise CheckpointError(f"{window.path} is no whole zip file: its end is missing; it is cut short or damaged")
    disk, first_disk, _, count, size, start = struct.unpack_from("<HHHHII", tail, at + 4)
    if _FULL16 in (disk, count) or _FULL32 in (size, start):
        if at < 20 or tail[at - 20 : at - 16] != _LOCATOR64:
            raise CheckpointError(f"{window.path}: its zip64 end is missing; it is cut short or damaged")
        (place,) = struct.unpack_from("<Q", tail, at - 20 + 8)
        end64 = window.part(place, 56, "its zip64 end").read()
        if end64[:4] != _END64:
            raise CheckpointError(f"{window.path}: its zip64 end is damaged")
        disk, first_disk, _, count, size, start = struct.unpack_from("<IIQQQQ", end64, 16)
    if disk or first_disk:
        raise CheckpointError(f"{window.path} is a part of a zip file of several disks")
    return start, size, count


def _directory(window: Window, text: bytes, count: int) -> list[_Entry]:
    entries: list[_Entry] = []
    at = 0
    while at + 46 <= len(text) and text[at : at + 4] == _CENTRAL:
        flags, method = struct.unpack_from("<HH", text, at + 8)
        packed, size, name_size, extra_size, comment_size = struct.unpack_from("<IIHHH", text, at + 20)
        (header,) = struct.unpack_from("<I", text, at + 42)
        name = text[at + 46 : at + 46 + name_size].decode("utf-8", "replace")
        extra = text[at + 46 + name_size : at + 46 + name_size + extra_size]
        size, packed, header = _wide(window, extra, size, packed, header)
        if method or size != packed:
            raise CheckpointError(
                f"{window.path}: zip entry {name!r} is compressed ({packed} bytes that expand to {size}); "
                "torch.save stores entries as they are"
            )
        if flags & 1:
            raise CheckpointError(f"{window.path}: zip entry {name!r} is encrypted")
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise CheckpointError(f"{window.path}: zip entry {name[:100]!r} has a name that leaves its folder")
        entries.append(_Entry(name, header, size))
        at += 46 + name_size + extra_size + comment_size
    if len(entries) != count or at != len(text):
        raise CheckpointError(
            f"{window.path}: its zip directory promises {count} entries and has {len(entries)}; it is damaged"
        )
    return entries


def _wide(window: Window, extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Sizes and place, from the zip64 field where they do not fit in 32 bits."""
    values = [size, packed, header]
    wanted = [index for index, value in enumerate(values) if value == _FULL32]
    at = 0
    while wanted and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1 and length >= 8 * len(wanted) and at + 4 + length <= len(extra):
            for place, index in enumerate(wanted):
                (values[index],) = struct.unpack_from("<Q", extra, at + 4 + 8 * place)
            return values[0], values[1], values[2]
        at += 4 + length
    if wanted:
        raise CheckpointError(f"{window.path}: a zip64 field is missing; it is damaged")
    return size, packed, header


def _data(window: Window, entry: _Entry) -> Window:
    local = window.part(entry.header, 30, f"the header of zip entry {entry.name!r}").read()
    name_size, extra_size = struct.unpack_from("<HH", local, 26)
    name = window.part(entry.header + 30, name_size, "a zip entry's name").read()
    if local[:4] != _LOCAL or name.decode("utf-8", "replace") != entry.name:
        raise CheckpointError(f"{window.path}: zip entry {entry.name!r} is not where the directory says; it is damaged")
    start = entry.header + 30 + name_size + extra_size
    return window.part(start, entry.size, f"zip entry {entry.name!r}")
