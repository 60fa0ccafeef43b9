"""Reads a checkpoint of this project's format by logical names, fetching only the elements asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from ds_core.checkpoint.storage.boxes import Box, runs, span
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import MANIFEST
from ds_core.checkpoint.storage.manifest import Manifest, Piece, Tensor, block_digest, read_manifest
from ds_core.checkpoint.storage.safetensors_file import DTYPES, TensorFile
from ds_core.checkpoint.storage.safetensors_file import fill as read_exactly
from ds_core.errors import CheckpointError

__all__ = ["CheckpointReader", "Damage"]


class Damage(NamedTuple):
    """A file whose bytes are not those that were written, and what is wrong with it."""

    file: str
    reason: str


class CheckpointReader:
    """An open checkpoint folder, a `ds_core.checkpoint.source.Source`.

    The manifest and the lengths of all files are checked when it is opened, the bytes of the files by `verify`.

    Attributes:
        path: the folder.
        strict: parts should refuse when something of theirs is missing.
        manifest: what ``manifest.json`` says.

    Raises:
        CheckpointError: the folder is no complete checkpoint, or is damaged.
    """

    format: str = "ds"
    _shown: ClassVar[int] = 5

    def __init__(self, path: Path, *, strict: bool = True, disk: Disk = DISK, check_files: bool = True) -> None:
        self.path: Path = path
        self.strict: bool = strict
        self.manifest: Manifest = read_manifest(path, disk, check_files=check_files)
        self._disk: Disk = disk
        self._open: dict[str, TensorFile] = {}

    @property
    def counters(self) -> Mapping[str, int]:
        """Of the engine that saved."""
        return self.manifest.counters

    @property
    def client_state(self) -> dict[str, Any]:
        """As it was saved."""
        return self.manifest.client_state

    def keys(self) -> Sequence[str]:
        """Names of all logical tensors."""
        return list(self.manifest.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Logical shape of `key`."""
        return tuple(self._tensor(key).shape)

    def dtype(self, key: str) -> torch.dtype:
        """The dtype `key` was saved in."""
        return DTYPES[self._tensor(key).dtype]

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value saved under `name`."""
        return self.manifest.values.get(name, default)

    def full(self, key: str) -> torch.Tensor:
        """The whole logical tensor in its saved dtype and shape."""
        out = torch.empty(math.prod(self.shape(key)), dtype=self.dtype(key))
        self.read(key, out)
        return out.view(self.shape(key))

    def read(self, key: str, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements ``start <= i < start + out.numel()`` of `key`, cast to out's dtype.

        Elements go straight into `out` where it is contiguous, of the saved dtype and in host memory, else through a
        buffer of 16 MiB.

        Raises:
            CheckpointError: the checkpoint does not have them, or a file cannot be read.
        """
        tensor = self._tensor(key)
        shape, stop = tuple(tensor.shape), start + out.numel()
        if start < 0 or stop > math.prod(shape):
            raise CheckpointError(f"elements {start} to {stop} of {key!r} were asked for; it has shape {shape}")
        for piece in tensor.pieces:
            first, last = span(shape, piece.box)
            if first >= stop or last <= start:
                continue
            for run in runs(shape, piece.box, start, stop):
                self._file(key, piece, tensor).read(
                    piece.name, out[run.start - start : run.start - start + run.numel], run.inner
                )

    def _tensor(self, key: str) -> Tensor:
        if key not in self.manifest.tensors:
            raise CheckpointError(f"checkpoint {self.path} holds no tensor {key!r}")
        return self.manifest.tensors[key]

    def _file(self, key: str, piece: Piece, tensor: Tensor) -> TensorFile:
        """The open file of a piece, which was compared with what the manifest says of it."""
        if piece.file not in self._open:
            self._open[piece.file] = TensorFile(self.path / piece.file, self._disk)
        file = self._open[piece.file]
        entry = file.entries.get(piece.name)
        if entry is None or entry.dtype != DTYPES[tensor.dtype] or entry.shape != tuple(piece.size):
            found = "is not there" if entry is None else f"is {entry.dtype} of shape {entry.shape}"
            raise CheckpointError(
                f"checkpoint {self.path} is damaged: the piece {piece.name!r} of {key!r} in {piece.file} {found}"
            )
        return file

    # --- checking ---------------------------------------------------------------------------------------------------

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Checks the hashes of this share of all blocks.

        Raises:
            CheckpointError: bytes changed; names the files.
        """
        found = dict.fromkeys(damage.file for damage in self.damages(share, shares))
        if found:
            raise CheckpointError(
                f"checkpoint {self.path} is damaged: {', '.join(list(found)[: self._shown])} "
                f"{'is' if len(found) == 1 else 'are'} not what was written; its bytes do not have the hashes that "
                f"{MANIFEST} names"
            )

    def damages(
        self, share: int = 0, shares: int = 1, told: Callable[[int], Any] = lambda nbytes: None
    ) -> Iterator[Damage]:
        """Every block of this share whose bytes are not those that were written; memory: one block.

        Args:
            share, shares: which of how many shares.
            told: gets the bytes that were looked at, block by block.
        """
        size = self.manifest.checksum.block_bytes
        buffer: memoryview | None = None
        number = 0
        for name, file in self.manifest.files.items():
            mine = [index for index in range(len(file.blocks)) if (number + index) % shares == share]
            number += len(file.blocks)
            if not mine:
                continue
            buffer = memoryview(bytearray(min(size, file.bytes))) if buffer is None or len(buffer) < size else buffer
            try:
                fd = self._disk.open(self.path / name)
            except OSError as error:
                yield Damage(name, f"it cannot be read: {error}")
                continue
            try:
                if self._disk.length(fd) != file.bytes:
                    yield Damage(name, f"it has {self._disk.length(fd)} bytes instead of {file.bytes}")
                    continue
                for index in mine:
                    block = buffer[: min(size, file.bytes - index * size)]
                    read_exactly(self._disk, fd, block, index * size, self.path / name)
                    if block_digest(block) != file.blocks[index]:
                        yield Damage(name, f"block {index} of {len(file.blocks)} was changed")
                    told(len(block))
            except (OSError, CheckpointError) as error:
                yield Damage(name, f"it cannot be read: {error}")
            finally:
                self._disk.close(fd)

    def pieces(self, key: str) -> Iterator[tuple[Piece, Box]]:
        """The pieces of a tensor, and where each is."""
        for piece in self._tensor(key).pieces:
            yield piece, piece.box

    def close(self) -> None:
        """Closes files."""
        for file in self._open.values():
            file.close()
        self._open.clear()
