"""What a file of torch.save holds, zip or legacy, with tensors left in the file until they are read."""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.foreign.pickles import read_pickle
from ds_core.checkpoint.foreign.records import INERT
from ds_core.checkpoint.foreign.stored import Storage
from ds_core.checkpoint.foreign.window import Window, open_window
from ds_core.checkpoint.foreign.zip_file import is_zip, read_entries
from ds_core.errors import CheckpointError

__all__ = ["read_torch_file", "read_torch_window"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_RECIPE = "data.pkl"


def read_torch_file(path: Path, *, within: Path | None = None, inert: Collection[str] = INERT) -> Any:
    """The object in `path`: plain containers and scalars, `StoredTensor`s, and `Record`s of inert names.

    Args:
        path: a file of torch.save.
        within: the folder it must be in, see `open_window`.
        inert: names whose objects become records.

    Raises:
        CheckpointError: the file is damaged, or asks for something that is not allowed; see Note [Hostile pickles].
    """
    return read_torch_window(open_window(path, within), inert=inert)


def read_torch_window(window: Window, *, inert: Collection[str] = INERT) -> Any:
    """As `read_torch_file`, of a file of torch.save that is a part of another file."""
    return _read_zip(window, inert) if is_zip(window) else _read_legacy(window, inert)


def _read_zip(window: Window, inert: Collection[str]) -> Any:
    entries = read_entries(window)
    recipes = [name for name in entries if name.rpartition("/")[2] == _RECIPE and name.count("/") <= 1]
    if len(recipes) != 1:
        raise CheckpointError(f"{window.path} is a zip file and none of torch.save: it has {len(recipes)} {_RECIPE}")
    prefix = recipes[0].removesuffix(_RECIPE)
    order = entries.get(f"{prefix}byteorder")
    if order is not None and order.size < 10 and order.read() != b"little":
        raise CheckpointError(f"{window.path} was written by a big-endian machine, which is not read")
    if f"{prefix}constants.pkl" in entries:
        raise CheckpointError(f"{window.path} is a TorchScript archive, which holds a program; save its state_dict")

    def storage(identity: Any) -> Storage:
        dtype, key, numel = _identity(identity)
        name = f"{prefix}data/{key}"
        if name not in entries:
            raise CheckpointError(f"storage {name!r} is not in the file")
        if numel * dtype.itemsize > entries[name].size:
            raise CheckpointError(
                f"storage {name!r} is said to have {numel} elements of {dtype} and has {entries[name].size} bytes"
            )
        return Storage(entries[name], dtype, numel)

    return read_pickle(entries[recipes[0]], storage, inert=inert)[0]


def _read_legacy(window: Window, inert: Collection[str]) -> Any:
    """Magic number, protocol and system as pickles, then the object's pickle, a pickled list of keys, and storages."""
    at = 0
    head: list[Any] = []
    for _ in range(3):
        value, length = read_pickle(_from(window, at), inert=())
        head.append(value)
        at += length
        if head[0] != _LEGACY_MAGIC:
            raise CheckpointError(f"{window.path} is no file of torch.save")
    system = head[2]
    if head[1] != _LEGACY_PROTOCOL or type(system) is not dict or not system.get("little_endian"):
        raise CheckpointError(f"{window.path} is a file of torch.save of a version or machine that is not read")
    promised: dict[str, list[Any]] = {}

    def learn(identity: Any) -> Storage:
        # Where storages begin is known after the pickle only: the first pass learns how long they are.
        if isinstance(identity, tuple) and len(identity) == 6 and identity[5] is not None:
            raise CheckpointError("a storage is a view of another, as very old versions of torch wrote it")
        dtype, key, numel = _identity(identity)
        known = promised.setdefault(key, [dtype, numel])
        if known != [dtype, numel]:
            raise CheckpointError(f"storage {key[:40]!r} is described in two ways")
        return Storage(window, dtype, numel)

    _, length = read_pickle(_from(window, at), learn, inert=inert)
    recipe, at = at, at + length
    keys, length = read_pickle(_from(window, at), inert=())
    at += length
    if type(keys) is not list or len(keys) != len(set(map(str, keys))) or not set(promised) <= set(map(str, keys)):
        raise CheckpointError(f"{window.path}: its list of storages is not that of its tensors; it is damaged")
    places: dict[str, Window] = {}
    for key in map(str, keys):
        (numel,) = struct.unpack("<q", window.part(at, 8, f"storage {key!r}").read())
        if key not in promised or promised[key][1] != numel:
            raise CheckpointError(f"{window.path}: storage {key!r} has {numel} elements, which is not what it should")
        places[key] = window.part(at + 8, numel * promised[key][0].itemsize, f"storage {key!r}")
        at += 8 + places[key].size

    def storage(identity: Any) -> Storage:
        dtype, key, numel = _identity(identity)
        return Storage(places[key], dtype, numel)

    return read_pickle(_from(window, recipe), storage, inert=inert)[0]


def _from(window: Window, at: int) -> Window:
    return window.part(at, window.size - at, "a pickle")


def _identity(identity: Any) -> tuple[torch.dtype, str, int]:
    """Dtype, key and number of elements of a persistent id ``('storage', type, key, location, numel)``."""
    if type(identity) is tuple and len(identity) in (5, 6) and identity[0] == "storage":
        _, dtype, key, _, numel = identity[:5]
        if isinstance(dtype, torch.dtype) and type(key) is str and type(numel) is int and numel >= 0:
            return dtype, key, numel
    raise CheckpointError("a persistent id is not that of a storage")
