"""The manifest of a checkpoint: one JSON file that says everything but the elements of the tensors.

Note [A hash in what it covers]
    ``xxh3_64`` near the beginning of the file is the hash (XXH3, 64 bits, seed 0) of the file's bytes with its own 16
    hexadecimal digits as zeros, so that a change of any byte of the file is found and one file is enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ds_core.checkpoint.storage.boxes import Box, intersect, span, within
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import MANIFEST, read_whole, to_json
from ds_core.checkpoint.storage.safetensors_file import DTYPES
from ds_core.errors import CheckpointError

__all__ = [
    "ALGORITHM",
    "BLOCK_BYTES",
    "FORMAT",
    "VERSION",
    "Checksum",
    "DataFile",
    "Manifest",
    "Mesh",
    "Piece",
    "Tensor",
    "block_digest",
    "encode",
    "read_manifest",
]

FORMAT = "ds-checkpoint"
VERSION = 2
ALGORITHM = "xxh3_64"
BLOCK_BYTES = 16 << 20
LIMIT_BYTES = 1 << 30
_MAX_NUMEL = 2**62

_Count = Annotated[int, Field(strict=True, ge=0, le=_MAX_NUMEL)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_Name = Annotated[str, Field(min_length=1, max_length=4096)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class DataFile(_Model):
    """A safetensors file: its length, and a hash of every block of ``checksum.block_bytes``."""

    bytes: _Count
    blocks: list[_Digest]


class Piece(_Model):
    """A box of a logical tensor: the file, its name there, where it begins in the tensor, and its extents."""

    file: _Name
    name: _Name
    offset: list[_Count]
    size: list[_Count]

    @property
    def box(self) -> Box:
        """Where it is in the logical tensor."""
        return Box(tuple(self.offset), tuple(self.size))


class Tensor(_Model):
    """A logical tensor: dtype as safetensors names it, shape, and the pieces it consists of."""

    dtype: str
    shape: list[_Count]
    pieces: list[Piece]

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"dtype {value!r} is not one of {', '.join(DTYPES)}")
        return value


class Checksum(_Model):
    """How blocks of data files are hashed."""

    algorithm: Literal["xxh3_64"]
    block_bytes: Annotated[int, Field(strict=True, ge=4096, le=1 << 32)]


class Mesh(_Model):
    """Who wrote it: sizes of the mesh's axes by name, and the number of processes."""

    axes: dict[str, _Count]
    ranks: Annotated[int, Field(strict=True, ge=1, le=1 << 24)]


class Manifest(_Model):
    """What ``manifest.json`` holds. Keys that are not known are kept out, so that later versions may add some."""

    format: Literal["ds-checkpoint"]
    version: _Count
    xxh3_64: _Digest
    id: _Name
    tag: _Name
    created: str
    is_latest: bool
    tools: dict[str, str]
    mesh: Mesh
    plan: dict[str, Any]
    counters: dict[str, _Count]
    client_state: dict[str, Any]
    values: dict[str, Any]
    checksum: Checksum
    files: dict[str, DataFile]
    tensors: dict[str, Tensor]


def block_digest(block: memoryview | bytes) -> str:
    """16 hexadecimal digits: the XXH3 hash of a block, 64 bits, seed 0."""
    return xxhash.xxh3_64_hexdigest(block)


def encode(content: Mapping[str, Any]) -> bytes:
    """The file of a manifest with these members, its hash put in.

    Raises:
        CheckpointError: something in it is not JSON.
    """
    lines = [f'"format": "{FORMAT}"', f'"version": {VERSION}', f'"{ALGORITHM}": "{"0" * 16}"']
    for name, value in content.items():
        if name in ("files", "tensors"):
            inner = ",\n".join(f"{json.dumps(key)}: {to_json(item, key)}" for key, item in value.items())
            lines.append(f'"{name}": {{\n{inner}\n}}')
        else:
            lines.append(f"{json.dumps(name)}: {to_json(value, name)}")
    blank = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    place = _place(blank)
    return blank[:place] + block_digest(blank).encode() + blank[place + 16 :]


def _place(payload: bytes) -> int:
    """Where the digits of the hash begin."""
    mark = f'"{ALGORITHM}": "'.encode()
    return payload.find(mark) + len(mark)


def read_manifest(folder: Path, disk: Disk = DISK, *, check_files: bool = True) -> Manifest:
    """The manifest of a checkpoint folder, whose hash, members, files' lengths and pieces were all checked.

    Args:
        folder: the checkpoint.
        disk: operations on files.
        check_files: False leaves the files alone, for who wants to name all that are damaged.

    Raises:
        CheckpointError: the folder is no complete checkpoint, is damaged, or is of a later version.
    """
    path = folder / MANIFEST
    try:
        payload = read_whole(path, LIMIT_BYTES, disk)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    content = _parse(payload, path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a {FORMAT}")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {folder} has format version {content.get('version')!r}, this ds-core reads version {VERSION}; "
            "install the ds-core that wrote it, or a later one"
        )
    _check_hash(payload, content, path)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path} is damaged: {where}: {first['msg']}") from None
    if check_files:
        _check_files(manifest, folder, disk)
    for key, tensor in manifest.tensors.items():
        _check_pieces(key, tensor, manifest, path)
    return manifest


def _parse(payload: bytes, path: Path) -> Any:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name is there twice")
        return found

    try:
        return json.loads(payload, object_pairs_hook=members)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON ({error})") from None


def _check_hash(payload: bytes, content: Mapping[str, Any], path: Path) -> None:
    place = _place(payload)
    blank = payload[:place] + b"0" * 16 + payload[place + 16 :]
    if content.get(ALGORITHM) != block_digest(blank):
        raise CheckpointError(f"{path} is damaged: its content does not have the {ALGORITHM} it names")


def _check_files(manifest: Manifest, folder: Path, disk: Disk) -> None:
    for name, file in manifest.files.items():
        if Path(name).name != name or "\0" in name or name in (".", ".."):
            raise CheckpointError(f"checkpoint {folder} names a file outside its folder: {name!r}")
        if len(file.blocks) != math.ceil(file.bytes / manifest.checksum.block_bytes):
            raise CheckpointError(f"{folder / MANIFEST} is damaged: {name} has {len(file.blocks)} hashes of blocks")
        try:
            fd = disk.open(folder / name)
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
        try:
            actual = disk.length(fd)
        finally:
            disk.close(fd)
        if actual != file.bytes:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} has {actual} bytes instead of {file.bytes}")


def _check_pieces(key: str, tensor: Tensor, manifest: Manifest, path: Path) -> None:
    """Every element of the tensor is in exactly one piece, and every piece in a file."""
    shape = tuple(tensor.shape)
    if math.prod(extent or 1 for extent in shape) > _MAX_NUMEL:
        raise CheckpointError(f"{path} is damaged: {key!r} would have shape {shape}")
    boxes = []
    for piece in tensor.pieces:
        if piece.file not in manifest.files:
            raise CheckpointError(f"{path} is damaged: a piece of {key!r} is in {piece.file!r}, which is not listed")
        if not within(shape, piece.box):
            raise CheckpointError(f"{path} is damaged: a piece of {key!r} is outside its shape {shape}: {piece.box}")
        if piece.box.numel:
            boxes.append(piece.box)
    if sum(box.numel for box in boxes) != math.prod(shape) or _overlap(shape, boxes):
        raise CheckpointError(f"{path} is damaged: the pieces of {key!r} do not make up its shape {shape}")


def _overlap(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """Whether two of the boxes meet; only those whose spans meet are compared."""
    ordered = sorted(boxes, key=lambda box: span(shape, box))
    active: list[tuple[int, Box]] = []
    for box in ordered:
        start, stop = span(shape, box)
        active = [(end, other) for end, other in active if end > start]
        if any(intersect(box, other) for _, other in active):
            return True
        active.append((stop, box))
    return False
