"""The commit: what all ranks wrote becomes one checkpoint, by one rename, once all of it is durable.

Note [The order of a commit]
    1. every rank's data file is written and synced, then its note (`ds_core.checkpoint.saving.share`);
    2. the first rank has all notes, checks that they make up whole tensors, and writes and syncs the manifest;
    3. the notes are deleted and the working folder is synced: it is complete, under a name that nobody loads;
    4. a former checkpoint of the same tag is renamed away (it stands for the tag until 5);
    5. the working folder is renamed to the tag, and the parent is synced: from here on it is the newest;
    6. ``latest`` is replaced by a rename; the former checkpoint is deleted; older ones, by the retention policy.
    A crash before 5 leaves the former checkpoints as they were, and a hidden folder that the next save removes.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.saving.liveness import alive_name
from ds_core.checkpoint.saving.planner import box_of, global_metadata
from ds_core.checkpoint.saving.share import Written, note_name
from ds_core.checkpoint.storage.boxes import Box
from ds_core.checkpoint.storage.disk import Disk
from ds_core.checkpoint.storage.files import LATEST, MANIFEST, naming, write_all, write_durably
from ds_core.checkpoint.storage.folder import OWNER, working_folder
from ds_core.checkpoint.storage.manifest import ALGORITHM, BLOCK_BYTES, encode, read_manifest
from ds_core.checkpoint.storage.safetensors_file import NAMES

__all__ = ["Header", "commit", "manifest_of"]


@dataclass(frozen=True)
class Header:
    """What the first rank knows of a checkpoint before anything is written.

    Attributes:
        identity: what tells this save from any other.
        tag: its name.
        is_latest: whether ``latest`` shall name it.
        axes: sizes of the mesh's axes.
        ranks: processes that write.
        plan: how the engine kept its state.
        counters: of the engine.
        client_state: the caller's.
    """

    identity: str
    tag: str
    is_latest: bool
    axes: Mapping[str, int]
    ranks: int
    plan: Mapping[str, Any]
    counters: Mapping[str, int]
    client_state: Mapping[str, Any]


def manifest_of(header: Header, shares: Sequence[Written]) -> bytes:
    """The manifest of a checkpoint that consists of these shares.

    Raises:
        CheckpointError: the shares do not make up whole tensors, or a value is not JSON.
    """
    places: dict[tuple[str, Box], tuple[str, str]] = {}
    values: dict[str, Any] = {}
    for share in shares:
        merge(values, share.values)
        for index, item in enumerate(share.plan.items):
            places[item.index.fqn, box_of(item)] = (share.file, f"t{index}")
    tensors = {}
    for key, tensor in global_metadata([share.plan for share in shares]).items():
        pieces = []
        for chunk in tensor.chunks:
            box = Box(tuple(chunk.offsets), tuple(chunk.sizes))
            file, name = places[key, box]
            pieces.append({"file": file, "name": name, "offset": list(box.offset), "size": list(box.size)})
        tensors[key] = {"dtype": NAMES[tensor.properties.dtype], "shape": list(tensor.size), "pieces": pieces}
    return encode(
        {
            "id": header.identity,
            "tag": header.tag,
            "created": datetime.now(timezone.utc).isoformat(),
            "is_latest": header.is_latest,
            "tools": tools(),
            "mesh": {"axes": dict(header.axes), "ranks": header.ranks},
            "plan": dict(header.plan),
            "counters": dict(header.counters),
            "client_state": dict(header.client_state),
            "values": values,
            "checksum": {"algorithm": ALGORITHM, "block_bytes": BLOCK_BYTES},
            "files": {share.file: {"bytes": share.file_bytes, "blocks": share.blocks} for share in shares},
            "tensors": tensors,
        }
    )


def commit(root: Path, work: Path, header: Header, shares: Sequence[Written], disk: Disk) -> Path:
    """Steps 2 to 6 of Note [The order of a commit], but for retention; the folder of the checkpoint.

    Raises:
        CheckpointError: the shares do not make up whole tensors.
        OSError: the disk refused something; nothing that was there before is gone.
    """
    payload = manifest_of(header, shares)
    fd = disk.create(work / MANIFEST)
    try:
        with naming(work / MANIFEST):
            write_all(disk, fd, memoryview(payload), 0)
            disk.sync(fd)
    finally:
        disk.close(fd)
    read_manifest(work, disk)
    for rank in range(header.ranks):
        disk.remove(work / note_name(rank))
        disk.remove(work / alive_name(rank))
    disk.remove(work / OWNER)
    disk.sync_folder(work)
    final = root / header.tag
    former = working_folder(root, header.tag, header.identity, "replaced")
    if final.exists():
        disk.rename(final, former)
    disk.rename(work, final)
    disk.sync_folder(root)
    if header.is_latest:
        write_durably(root / LATEST, header.tag.encode(), disk)
    disk.remove_folder(former)
    return final


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Adds what `into` does not have; dicts and lists of names are merged, of anything else the first stays."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        elif _is_names(value) and _is_names(into.get(key)):
            into[key] = list(dict.fromkeys([*into[key], *value]))
        else:
            into.setdefault(key, value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def tools() -> dict[str, str]:
    """Versions of what writes."""
    return {
        "ds-core": version("ds-core"),
        "python": platform.python_version(),
        "safetensors": version("safetensors"),
        "torch": torch.__version__,
    }
