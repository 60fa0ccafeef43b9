"""Writes one safetensors file whose tensors arrive in pieces and in any order, and appears only when it is whole.

Source: the format's description, https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ds_core.aio.memory import byte_view
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import write_all
from ds_core.checkpoint.storage.safetensors_file import header_for
from ds_core.errors import CheckpointError

__all__ = ["BLOCK_BYTES", "TensorEntry", "TensorWriter"]

BLOCK_BYTES = 16 << 20
"""Most bytes that are cast, copied and handed to the system at a time."""


class TensorEntry(NamedTuple):
    """A tensor to be written: its name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.numel * self.dtype.itemsize


class TensorWriter:
    """A file of `entries` being written under the name `path`, from the first `put` on. Not made for two threads.

    Wider dtypes come first, which keeps every tensor on an address its dtype can be read from.

    Raises:
        CheckpointError: a dtype the format has no name for.
    """

    def __init__(
        self,
        path: Path,
        entries: Sequence[TensorEntry],
        metadata: Mapping[str, str] | None = None,
        disk: Disk = DISK,
    ) -> None:
        self.path: Path = path
        self._disk: Disk = disk
        self._places: dict[str, tuple[TensorEntry, int]] = {}
        self._left_bytes: int = 0
        self._handle: int | None = None
        self._is_done: bool = False
        ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
        self._header: bytes = header_for(ordered, metadata)
        for entry in ordered:
            self._places[entry.name] = (entry, self._left_bytes)
            self._left_bytes += entry.nbytes

    @property
    def is_done(self) -> bool:
        """Whether every byte is on the disk."""
        return self._is_done

    def put(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Writes elements ``start <= i < start + values.numel()`` of `name`, each element once in the file's life.

        Args:
            name: one of the entries.
            values: any shape, dtype and device; cast to the entry's dtype, a block at a time.
            start: first flat element.
        """
        entry, offset = self._places[name]
        flat = values.detach().reshape(-1)
        if start + flat.numel() > entry.numel:
            raise CheckpointError(
                f"elements {start} to {start + flat.numel()} of {name!r} were to be written; it has {entry.numel}"
            )
        step = max(1, BLOCK_BYTES // max(entry.dtype.itemsize, flat.dtype.itemsize))
        place = len(self._header) + offset + start * entry.dtype.itemsize
        for part in flat.split(step) if flat.numel() else ():
            block = part.to(device="cpu", dtype=entry.dtype).contiguous()
            write_all(self._disk, self._open(), byte_view(block), place)
            place += block.nbytes
        self._left_bytes -= flat.numel() * entry.dtype.itemsize
        if self._left_bytes == 0:
            self.finish()

    def finish(self) -> None:
        """Makes the file durable. Called by the last `put`; by hand only for a file of empty tensors.

        Raises:
            CheckpointError: bytes are missing.
        """
        if self._is_done:
            return
        if self._left_bytes:
            raise CheckpointError(f"{self.path} lacks {self._left_bytes} bytes of its tensors")
        handle = self._open()
        self._disk.sync(handle)
        self._is_done = True
        self.close()

    def close(self) -> None:
        """Closes the file, whole or not."""
        if self._handle is not None:
            self._disk.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        if self._handle is None:
            self._disk.remove(self.path)
            self._handle = self._disk.create(self.path)
            write_all(self._disk, self._handle, memoryview(self._header), 0)
        return self._handle
