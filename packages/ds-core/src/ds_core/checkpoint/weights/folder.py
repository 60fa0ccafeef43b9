"""A folder of weights as Hugging Face lays it out: one safetensors file, or shards with an index, and small files.

Note [A folder that is never half new]
    Everything is written and synced in a folder beside the target, ``.<name>.<nonce>.exporting``. Where the target is
    absent or empty, one rename makes all of it appear. Where it has files, those that name weights are deleted first,
    then the new ones are moved in, the index (or the only weights file) last: a crash between leaves a folder in which
    loaders find no weights, never one with weights of two times.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import write_durably
from ds_core.checkpoint.storage.room import check_room
from ds_core.checkpoint.weights.tensor_writer import TensorEntry, TensorWriter
from ds_core.errors import CheckpointError, ConfigError

__all__ = ["FolderPlan", "WeightFile", "WeightFolder", "parse_size", "plan_folder"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_STALE = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)|(model\.safetensors|pytorch_model\.bin)\.index\.json"
)


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """Which tensors go to which file.

    Attributes:
        files: file name to its tensors, in order.
        total_bytes: of all tensors.
    """

    files: dict[str, tuple[TensorEntry, ...]]
    total_bytes: int

    @property
    def index(self) -> dict[str, object] | None:
        """What the index file says; None where one file holds everything and needs none."""
        if len(self.files) < 2:
            return None
        entries = [entry for held in self.files.values() for entry in held]
        return {
            "metadata": {"total_parameters": sum(entry.numel for entry in entries), "total_size": self.total_bytes},
            "weight_map": {entry.name: file for file, held in self.files.items() for entry in held},
        }


def plan_folder(entries: Sequence[TensorEntry], max_shard_bytes: int) -> FolderPlan:
    """Fills shards in order until the next tensor would exceed the size; a larger tensor has a shard of its own.

    Raises:
        CheckpointError: two entries of one name, or none at all.
    """
    names = [entry.name for entry in entries]
    if not names or len(set(names)) != len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise CheckpointError("there are no weights to write" if twice is None else f"{twice!r} is there twice")
    shards: list[list[TensorEntry]] = [[]]
    held_bytes = 0
    for entry in entries:
        if shards[-1] and held_bytes + entry.nbytes > max_shard_bytes:
            shards.append([])
            held_bytes = 0
        shards[-1].append(entry)
        held_bytes += entry.nbytes
    total_bytes = sum(entry.nbytes for entry in entries)
    if len(shards) == 1:
        return FolderPlan({WEIGHTS: tuple(shards[0])}, total_bytes)
    named = {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": tuple(shard)
        for number, shard in enumerate(shards, start=1)
    }
    return FolderPlan(named, total_bytes)


class WeightFile:
    """One file of weights being written, under a temporary name beside `target` until it is whole and durable.

    Raises:
        CheckpointError: a dtype that safetensors cannot hold, or the disk has no room.
    """

    def __init__(self, target: Path, entries: Sequence[TensorEntry], disk: Disk = DISK) -> None:
        self.target: Path = target
        self._disk: Disk = disk
        self._work: Path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.exporting")
        target.parent.mkdir(parents=True, exist_ok=True)
        check_room(target.parent, sum(entry.nbytes for entry in entries), disk)
        self._writer = TensorWriter(self._work, entries, {"format": "pt"}, disk)

    def put(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """See `TensorWriter.put`."""
        self._writer.put(name, values, start)

    def commit(self) -> None:
        """Makes the file appear, in place of one of its name.

        Raises:
            CheckpointError: a tensor was not written whole.
        """
        self._writer.finish()
        self._disk.rename(self._work, self.target)
        self._disk.sync_folder(self.target.parent)

    def abandon(self) -> None:
        """Deletes what was written. Harmless after `commit`."""
        self._writer.close()
        with contextlib.suppress(OSError):
            self._disk.remove(self._work)


class WeightFolder:
    """A folder of weights being written; see Note [A folder that is never half new].

    Args:
        target: where it will be.
        plan: its weights.
        disk: operations on files.

    Raises:
        CheckpointError: `target` is a file, or the disk has no room.
    """

    def __init__(self, target: Path, plan: FolderPlan, disk: Disk = DISK) -> None:
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"{target} is a file; name a folder to write weights to")
        self.target: Path = target.resolve()
        self.plan: FolderPlan = plan
        self._disk: Disk = disk
        check_room(target, plan.total_bytes, disk)
        self._work: Path = self.target.parent / f".{self.target.name}.{secrets.token_hex(4)}.exporting"
        disk.make_folder(self._work)
        self._files: dict[str, TensorWriter] = {}
        """The file of each tensor."""
        for name, entries in plan.files.items():
            file = TensorWriter(self._work / name, entries, {"format": "pt"}, disk)
            self._files.update((entry.name, file) for entry in entries)

    def put(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """See `TensorWriter.put`."""
        self._files[name].put(name, values, start)

    def add(self, name: str, content: bytes) -> None:
        """A small file beside the weights."""
        write_durably(self._work / name, content, self._disk)

    def commit(self) -> None:
        """Makes the folder appear. Afterwards this object is of no use.

        Raises:
            CheckpointError: a tensor was not written whole.
        """
        for file in dict.fromkeys(self._files.values()):
            file.finish()
        index = self.plan.index
        if index is not None:
            self.add(INDEX, (json.dumps(index, indent=2) + "\n").encode())
        self._disk.sync_folder(self._work)
        if self.target.is_dir() and any(self.target.iterdir()):
            self._move_in()
        else:
            self._disk.rename(self._work, self.target)  # also over an empty folder
        self._disk.sync_folder(self.target.parent)

    def _move_in(self) -> None:
        stale = [path for path in self.target.iterdir() if _STALE.fullmatch(path.name)]
        for path in sorted(stale, key=lambda path: not path.name.endswith(".index.json")):
            self._disk.remove(path)
        self._disk.sync_folder(self.target)
        last = INDEX if self.plan.index is not None else WEIGHTS
        for path in sorted(self._work.iterdir(), key=lambda path: path.name == last):
            if path.name == last:
                self._disk.sync_folder(self.target)
            self._disk.rename(path, self.target / path.name)
        self._disk.sync_folder(self.target)
        self._disk.remove_folder(self._work)

    def abandon(self) -> None:
        """Deletes what was written. Harmless after `commit`."""
        for file in self._files.values():
            file.close()
        with contextlib.suppress(OSError):
            self._disk.remove_folder(self._work)


def parse_size(size: int | str, setting: str = "max_shard_size") -> int:
    """Bytes of a size such as 5000000000, "5GB" (10^9) or "5GiB" (2^30).

    Raises:
        ConfigError: it is something else, or not positive.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(size).strip().upper())
    if found is None or found[2] not in _UNITS or not (nbytes := int(float(found[1]) * _UNITS[found[2]])):
        raise ConfigError(f"{setting} takes bytes like 5000000000, 5GB or 5GiB, got {size!r}")
    return nbytes
