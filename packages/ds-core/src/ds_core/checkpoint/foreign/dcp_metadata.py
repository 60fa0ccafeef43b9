"""``.metadata`` of torch.distributed.checkpoint: which boxes of which tensor lie where, without torch's classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.foreign.pickles import read_pickle
from ds_core.checkpoint.foreign.records import Record
from ds_core.checkpoint.foreign.window import open_window
from ds_core.errors import CheckpointError

__all__ = ["METADATA", "Chunk", "Item", "items", "read_metadata"]

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint"
_INERT = (
    f"{_MODULE}.metadata.Metadata",
    f"{_MODULE}.metadata.MetadataIndex",
    f"{_MODULE}.metadata.TensorStorageMetadata",
    f"{_MODULE}.metadata.BytesStorageMetadata",
    f"{_MODULE}.metadata.ChunkStorageMetadata",
    f"{_MODULE}.metadata.TensorProperties",
    f"{_MODULE}.metadata.StorageMeta",
    f"{_MODULE}.metadata._MEM_FORMAT_ENCODING",
    f"{_MODULE}.filesystem._StorageInfo",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor, or (`size` is None) a small object: bytes `start` to `start + length` of `file`."""

    file: Path
    start: int
    length: int
    offset: tuple[int, ...] = ()
    size: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of the saved state dict.

    Attributes:
        path: its keys, outermost first.
        dtype: of a tensor; None for another object.
        shape: of a tensor.
        chunks: where it is.
    """

    path: tuple[str | int, ...]
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    chunks: list[Chunk]


def read_metadata(folder: Path) -> Record:
    """The metadata as inert records.

    Raises:
        CheckpointError: it is damaged, or asks for something that is not allowed.
    """
    found, _ = read_pickle(open_window(folder / METADATA, folder), inert=_INERT)
    if not isinstance(found, Record) or not isinstance(found.get("state_dict_metadata"), dict):
        raise CheckpointError(f"{folder / METADATA} is not the metadata of torch.distributed.checkpoint")
    if not isinstance(found.get("storage_data"), dict):
        raise CheckpointError(f"{folder / METADATA} does not say in which files the tensors are")
    return found


def items(folder: Path, metadata: Record) -> Iterator[Item]:
    """Every entry of the saved state dict.

    Raises:
        CheckpointError: an entry is not described as torch describes it, or lies outside of the folder.
    """
    places = _places(folder, metadata.get("storage_data"))
    paths = metadata.get("planner_data")
    paths = paths if isinstance(paths, dict) else {}
    for name, saved in metadata.get("state_dict_metadata").items():
        path = paths.get(name, (name,))
        if not isinstance(saved, Record) or type(name) is not str or not _is_path(path):
            raise CheckpointError(f"{folder / METADATA} describes {str(name)[:100]!r} in a way that is not known here")
        if saved.name.endswith(".BytesStorageMetadata"):
            yield Item(path, None, (), [_place(places, name, ())])
            continue
        state = saved.get("properties")
        dtype = state.state[0] if isinstance(state, Record) and state.state else None
        shape, chunks = saved.get("size"), saved.get("chunks")
        if not isinstance(dtype, torch.dtype) or not _is_box(shape) or not isinstance(chunks, list):
            raise CheckpointError(f"{folder / METADATA} does not describe tensor {name!r} as torch does")
        yield Item(path, dtype, shape, [_chunk(places, name, chunk) for chunk in chunks])


Places = Mapping[tuple[str, tuple[int, ...]], Chunk]


def _places(folder: Path, storage: Mapping[Any, Any]) -> Places:
    """Where each piece is, by name and offset."""
    found: dict[tuple[str, tuple[int, ...]], Chunk] = {}
    for index, info in storage.items():
        if not isinstance(index, Record) or not isinstance(info, Record):
            raise CheckpointError(f"{folder / METADATA} places an entry in a way that is not known here")
        name, offset = index.get("fqn"), index.get("offset") or ()
        file, start, length = (info.get(key) for key in ("relative_path", "offset", "length"))
        if type(name) is not str or not _is_box(offset) or type(start) is not int or type(length) is not int:
            raise CheckpointError(f"{folder / METADATA} places an entry in a way that is not known here")
        if type(file) is not str or Path(file).name != file or file in (".", "..") or "\\" in file:
            raise CheckpointError(f"{folder / METADATA} places {name!r} in {file!r}, which is no file beside it")
        if info.get("transform_descriptors"):
            raise CheckpointError(f"{folder / METADATA}: {name!r} was transformed (compressed), which is not read here")
        found[name, offset] = Chunk(folder / file, start, length)
    _refuse_overlaps(found)
    return found


def _refuse_overlaps(places: Places) -> None:
    """Bytes that are listed many times would be read as many times: more than a checkpoint has."""
    end, before = 0, Path()
    for (name, _), chunk in sorted(places.items(), key=lambda item: (item[1].file, item[1].start)):
        if chunk.start < 0 or chunk.length < 0 or (chunk.file == before and chunk.start < end):
            raise CheckpointError(f"{chunk.file}: the bytes of {name!r} overlap those of another entry")
        end, before = chunk.start + chunk.length, chunk.file


def _place(places: Places, name: str, offset: tuple[int, ...]) -> Chunk:
    chunk = places.get((name, offset))
    if chunk is None:
        raise CheckpointError(f"the metadata does not say where {name!r} at {offset} is")
    return chunk


def _chunk(places: Places, name: str, saved: Any) -> Chunk:
    offset: Any = saved.get("offsets") if isinstance(saved, Record) else None
    size: Any = saved.get("sizes") if isinstance(saved, Record) else None
    if not _is_box(offset) or not _is_box(size) or len(offset) != len(size):
        raise CheckpointError(f"a chunk of {name!r} is not described as torch does")
    place = _place(places, name, offset)
    return Chunk(place.file, place.start, place.length, offset, size)


def _is_box(value: Any) -> bool:
    return type(value) is tuple and all(type(number) is int and 0 <= number < 1 << 48 for number in value)


def _is_path(value: Any) -> bool:
    return type(value) is tuple and bool(value) and all(type(part) in (str, int) for part in value)
