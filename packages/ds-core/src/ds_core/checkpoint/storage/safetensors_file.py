"""The safetensors format: the header of a file, checked, and its elements read straight to where they belong.

A file is 8 bytes with the length of the header (little-endian), the header (JSON: name to dtype, shape and range of
bytes behind the header), and the bytes of the tensors. safetensors' own reader maps the file, which counts its pages as
memory of the process; here elements are read into the tensor that wants them.

Source: https://huggingface.co/docs/safetensors (the format's description).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ds_core.aio.memory import byte_view
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.errors import CheckpointError

__all__ = ["DTYPES", "NAMES", "Entry", "TensorFile", "header_for", "read_header"]

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

HEADER_LIMIT_BYTES = 100_000_000
BUFFER_BYTES = 16 << 20


class Entry(NamedTuple):
    """A tensor in a file: dtype, shape, and the byte of the file at which it begins."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def header_for(
    entries: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The beginning of a file with these tensors, in order: length and header, a multiple of 8 bytes.

    Give wider dtypes first: every tensor then begins at an address its dtype can be read from.

    Raises:
        CheckpointError: a dtype the format has no name for.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in entries:
        if dtype not in NAMES:
            raise CheckpointError(f"{name} is {dtype}, which safetensors cannot hold; it can {', '.join(DTYPES)}")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path, disk: Disk = DISK, *, follow: bool = False) -> dict[str, Entry]:
    """The tensors of a file by name; nothing else of it is read. A symbolic link is an error unless `follow` is set.

    Raises:
        CheckpointError: it cannot be read, is cut short, or its header is damaged.
    """
    file = TensorFile(path, disk, follow=follow)
    file.close()
    return file.entries


def _header(path: Path, fd: int, disk: Disk) -> dict[str, Entry]:
    file_bytes = disk.length(fd)
    first = bytearray(8)
    disk.read(fd, memoryview(first), 0)
    length = int.from_bytes(first, "little")
    if file_bytes < 8 or length > min(file_bytes - 8, HEADER_LIMIT_BYTES):
        raise CheckpointError(f"{path} is not a whole safetensors file: its header would have {length} bytes")
    text = bytearray(length)
    fill(disk, fd, memoryview(text), 8, path)
    try:
        members = json.loads(text)
        members.pop("__metadata__", None)
        found = {name: _entry(path, name, member, 8 + length, file_bytes) for name, member in members.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header: {error}") from error
    end = 8 + length
    for name, entry in sorted(found.items(), key=lambda item: (item[1].offset_bytes, item[1].numel)):
        if entry.offset_bytes < end:
            raise CheckpointError(f"{path} has a damaged safetensors header: {name!r} overlaps what is before it")
        end = entry.offset_bytes + entry.numel * entry.dtype.itemsize
    return found


def _entry(path: Path, name: str, member: Mapping[str, Any], data_bytes: int, file_bytes: int) -> Entry:
    if member["dtype"] not in DTYPES:
        raise CheckpointError(f"{name!r} in {path} has dtype {member['dtype']}; known are {', '.join(DTYPES)}")
    begin, end = member["data_offsets"]
    shape = tuple(member["shape"])
    if any(type(number) is not int or number < 0 for number in (begin, end, *shape)):
        raise CheckpointError(f"{name!r} in {path} has shape {shape} at bytes {begin} to {end}")
    entry = Entry(DTYPES[member["dtype"]], shape, data_bytes + begin)
    if end - begin != entry.numel * entry.dtype.itemsize:
        raise CheckpointError(f"{name!r} in {path} has {end - begin} bytes for shape {shape} of {entry.dtype}")
    if data_bytes + end > file_bytes:
        raise CheckpointError(f"{path} is cut short: {name!r} ends at byte {data_bytes + end} of {file_bytes}")
    return entry


def fill(disk: Disk, fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Reads all of `view` from byte `offset` on.

    Raises:
        CheckpointError: the file ends before it.
    """
    done = 0
    while done < len(view):
        count = disk.read(fd, view[done:], offset + done)
        if not count:
            raise CheckpointError(f"{path} ended {len(view) - done} bytes too early")
        done += count


class TensorFile:
    """An open safetensors file.

    Attributes:
        path: the file.
        entries: its tensors by name.

    Raises:
        CheckpointError: it cannot be read, is cut short, or its header is damaged.
    """

    def __init__(self, path: Path, disk: Disk = DISK, *, follow: bool = False) -> None:
        self.path: Path = path
        self._disk: Disk = disk
        self._fd: int = -1
        try:
            self._fd = disk.open(path, follow=follow)
            self.entries: dict[str, Entry] = _header(path, self._fd, disk)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise CheckpointError(f"checkpoint file {path} cannot be read: {error}") from error
            raise

    def read(self, name: str, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements ``start <= i < start + out.numel()`` of a tensor, cast to out's dtype.

        What needs no cast and is in host memory is read in place; else through a buffer of `BUFFER_BYTES`.

        Raises:
            CheckpointError: the elements are not there, or cannot be read.
        """
        entry = self.entries[name]
        if start < 0 or start + out.numel() > entry.numel:
            raise CheckpointError(
                f"elements {start} to {start + out.numel()} of {name!r} in {self.path} were asked for; "
                f"it has {entry.numel}"
            )
        width = entry.dtype.itemsize
        offset = entry.offset_bytes + start * width
        try:
            if out.dtype == entry.dtype and out.device.type == "cpu" and out.is_contiguous():
                fill(self._disk, self._fd, byte_view(out), offset, self.path)
                return
            step = max(1, BUFFER_BYTES // width)
            buffer = torch.empty(min(step, out.numel()), dtype=entry.dtype)
            for low in range(0, out.numel(), step):
                part = buffer[: min(step, out.numel() - low)]
                fill(self._disk, self._fd, byte_view(part), offset + low * width, self.path)
                out[low : low + part.numel()].copy_(part)
        except OSError as error:
            raise CheckpointError(f"checkpoint file {self.path} cannot be read: {error}") from error

    def close(self) -> None:
        """Closes the file; it may be called again."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
