"""Reads a checkpoint by logical tensor names, fetching only the elements asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ds_core.checkpoint.files import FORMAT, MANIFEST, VERSION
from ds_core.errors import CheckpointError

__all__ = ["CheckpointReader"]


class _Piece(NamedTuple):
    start: int
    stop: int
    file: str
    name: str


class CheckpointReader:
    """An open checkpoint directory. Sizes of all files are checked before anything is read.

    Attributes:
        manifest: the parsed manifest.
        strict: parts should refuse when something of theirs is missing.

    Raises:
        CheckpointError: the directory is no complete checkpoint.
    """

    def __init__(self, path: Path, *, strict: bool = True) -> None:
        self.path: Path = path
        self.strict: bool = strict
        self.manifest: dict[str, Any] = _manifest(path)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        self._values: dict[str, Any] = {}
        self._open: dict[str, Any] = {}
        for name in sorted(self.manifest["files"]):
            if name.endswith(".json"):
                self._index(name)

    def _index(self, name: str) -> None:
        try:
            index = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint file {self.path / name} cannot be read: {error}") from error
        data = name.removesuffix(".json") + ".safetensors"
        for tensor, (key, shape, start, stop) in index["fragments"].items():
            self._shapes[key] = tuple(shape)
            self._pieces.setdefault(key, []).append(_Piece(start, stop, data, tensor))
        _merge(self._values, index["values"])

    def keys(self) -> Sequence[str]:
        """Names of all logical tensors."""
        return list(self._shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        """Logical shape of `key`."""
        return self._shapes[key]

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value saved under `name`."""
        return self._values.get(name, default)

    def dtype(self, key: str) -> torch.dtype:
        """The dtype `key` was saved in."""
        piece = self._pieces[key][0]
        dtype: torch.dtype = self._file(piece.file).get_slice(piece.name)[0:0].dtype
        return dtype

    def full(self, key: str) -> torch.Tensor:
        """The whole logical tensor in its saved dtype and shape."""
        out = torch.empty(math.prod(self.shape(key)), dtype=self.dtype(key))
        self.read(key, out)
        return out.view(self.shape(key))

    def read(self, key: str, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements ``start <= i < start + out.numel()`` of `key`, cast to out's dtype.

        Raises:
            CheckpointError: some of these elements are in no file.
        """
        stop, found = start + out.numel(), 0
        for piece in self._pieces.get(key, ()):
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low >= high:
                continue
            values = self._file(piece.file).get_slice(piece.name)[low - piece.start : high - piece.start]
            out[low - start : high - start].copy_(values)
            found += high - low
        if found != out.numel():
            raise CheckpointError(
                f"checkpoint {self.path} has {found} of elements {start}..{stop} of {key!r}; a file of it is missing"
            )

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.path / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"checkpoint file {self.path / name} cannot be read: {error}") from error
        return self._open[name]


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path / MANIFEST} is not the manifest of a {FORMAT}")
    if manifest["version"] > VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {manifest['version']}, this ds-core reads up to {VERSION}; "
            "upgrade ds-core"
        )
    for name, size in manifest["files"].items():
        if Path(name).name != name:
            raise CheckpointError(f"checkpoint {path} names a file outside its folder: {name!r}")
        actual = (path / name).stat().st_size if (path / name).is_file() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise CheckpointError(f"checkpoint {path} is damaged: {name} {state}")
    return manifest


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into.setdefault(key, value)
