"""Reads any range of any tensor from a safetensors file or a Hugging Face folder, without reading the rest."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ds_core.aio.memory import byte_view
from ds_core.checkpoint.storage.disk import DISK
from ds_core.checkpoint.storage.safetensors_file import fill, read_header
from ds_core.checkpoint.storage.weight_map import read_weight_map
from ds_core.errors import CheckpointError, did_you_mean

__all__ = ["SliceReader", "load_safetensors"]

_INDEX_NAME = "*.safetensors.index.json"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class SliceReader:
    """One tensor in a safetensors file: its dtype and shape, and `read` for any range of its elements."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements `start` to `stop` of the flattened tensor, as a new 1-D tensor; nothing else is read.

        Raises:
            CheckpointError: the range is outside the tensor, or the file ends before it.
        """
        stop = self.numel if stop is None else stop
        if not 0 <= start <= stop <= self.numel:
            raise CheckpointError(
                f"elements {start} to {stop} of {self.name!r} in {self.path} were asked for; it has {self.numel}"
            )
        values = torch.empty(stop - start, dtype=self.dtype)
        fd = DISK.open(self.path, follow=True)
        try:
            fill(DISK, fd, byte_view(values), self.offset_bytes + start * self.dtype.itemsize, self.path)
        finally:
            DISK.close(fd)
        return values


def load_safetensors(
    source: str | os.PathLike[str],
    names: Mapping[str, Sequence[int]] | Collection[str],
    *,
    dtype: torch.dtype | None = None,
    allow_unexpected: bool = False,
) -> Iterator[tuple[str, SliceReader]]:
    """A reader for each named tensor, in the order of `names`; headers are checked before the first one is given.

    Args:
        source: a ``.safetensors`` file, or a folder with an index (``model.safetensors.index.json``) or with
            ``.safetensors`` files.
        names: the names expected; a mapping gives the shape each must have.
        dtype: what every tensor must be stored in; None takes any.
        allow_unexpected: accept tensors in the files that are not in `names`.

    Raises:
        CheckpointError: nothing to read there, a damaged file, or tensors missing, unexpected, or of other shapes.
    """
    found = _readers(Path(source))
    missing = [name for name in names if name not in found]
    if missing:
        raise CheckpointError(
            f"{source} lacks {_listed(missing)}.{did_you_mean(missing[0], found)} "
            "Check that it is a checkpoint of this model"
        )
    unexpected = [] if allow_unexpected else [name for name in found if name not in names]
    if unexpected:
        raise CheckpointError(
            f"{source} holds {_listed(unexpected)}, which the model does not have; pass allow_unexpected=True to leave "
            "them out"
        )
    for name in names:
        _check(found[name], names[name] if isinstance(names, Mapping) else None, dtype)
    return iter([(name, found[name]) for name in names])


def _check(reader: SliceReader, shape: Sequence[int] | None, dtype: torch.dtype | None) -> None:
    if shape is not None and tuple(shape) != reader.shape:
        raise CheckpointError(
            f"{reader.name!r} in {reader.path} has shape {reader.shape}; the model has {tuple(shape)}"
        )
    if dtype is not None and dtype != reader.dtype:
        raise CheckpointError(f"{reader.name!r} in {reader.path} is stored in {reader.dtype}, expected {dtype}")


def _readers(source: Path) -> dict[str, SliceReader]:
    """A reader for every tensor of a file or folder."""
    if source.is_file():
        return _header(source)
    indices = sorted(source.glob(_INDEX_NAME))
    if len(indices) > 1:
        raise CheckpointError(f"{source} has {len(indices)} files named {_INDEX_NAME}; name the file to load")
    if indices:
        return _indexed(indices[0])
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{source} is neither a .safetensors file nor a folder with one; check the path")
    found: dict[str, SliceReader] = {}
    for file in files:
        for name, reader in _header(file).items():
            if name in found:
                raise CheckpointError(f"{name!r} is in {found[name].path} and in {file}; name the file to load")
            found[name] = reader
    return found


def _indexed(index: Path) -> dict[str, SliceReader]:
    """The readers an index file promises."""
    places = read_weight_map(index)
    headers = {file: _header(index.parent / file) for file in dict.fromkeys(places.values())}
    for name, file in places.items():
        if name not in headers[file]:
            raise CheckpointError(f"{index} says {name!r} is in {file}, and it is not")
    return {name: headers[file][name] for name, file in places.items()}


def _header(path: Path) -> dict[str, SliceReader]:
    """Readers for the tensors of one file; links are followed, for a hub's cache consists of them."""
    return {
        name: SliceReader(name, path, entry.dtype, entry.shape, entry.offset_bytes)
        for name, entry in read_header(path, follow=True).items()
    }


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
