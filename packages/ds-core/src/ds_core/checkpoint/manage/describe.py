"""What a checkpoint says of itself, as JSON-able data: counters, who wrote it, values, tensors."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

from ds_core.checkpoint.source import Source
from ds_core.checkpoint.storage.reader import CheckpointReader

__all__ = ["VALUES", "describe", "group_of", "values_of"]

VALUES = ("optimizer", "optimizer_scalars", "lr_scheduler", "loss_scale", "data", "module")
"""Values that any format may have; a checkpoint of this project's format lists its own."""


def describe(source: Source, pattern: str | None = None) -> dict[str, Any]:
    """Everything but the elements of tensors.

    Args:
        source: an open checkpoint.
        pattern: tensors whose names match it (as file names do) are listed one by one; None: only groups of them.
    """
    told: dict[str, Any] = {"path": str(source.path), "format": source.format}
    if isinstance(source, CheckpointReader):
        manifest = source.manifest
        told |= {
            "tag": manifest.tag,
            "id": manifest.id,
            "created": manifest.created,
            "tools": dict(manifest.tools),
            "mesh": {"axes": dict(manifest.mesh.axes), "ranks": manifest.mesh.ranks},
            "plan": dict(manifest.plan),
            "files": {name: file.bytes for name, file in manifest.files.items()},
        }
    told |= {"counters": dict(source.counters), "client_state": source.client_state, "values": values_of(source)}
    told["groups"] = _groups(source)
    if pattern is not None:
        keys = sorted(key for key in source.keys() if fnmatch.fnmatchcase(key, pattern))  # noqa: SIM118
        told["tensors"] = [_tensor(source, key) for key in keys]
    return told


def values_of(source: Source) -> dict[str, Any]:
    """The JSON values of a checkpoint, by name."""
    if isinstance(source, CheckpointReader):
        return dict(source.manifest.values)
    return {name: value for name in VALUES if (value := source.value(name)) is not None}


def group_of(key: str) -> str:
    """The kind of tensor a key names: ``model``, ``optimizer/exp_avg``, ``random``."""
    parts = key.split("/")
    return "/".join(parts[:2]) if parts[0] == "optimizer" and len(parts) > 2 else parts[0]


def _groups(source: Source) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for key in sorted(source.keys()):
        group = groups.setdefault(group_of(key), {"tensors": 0, "elements": 0, "bytes": 0, "dtypes": {}})
        numel, dtype = math.prod(source.shape(key)), source.dtype(key)
        group["tensors"] += 1
        group["elements"] += numel
        group["bytes"] += numel * dtype.itemsize
        name = str(dtype).removeprefix("torch.")
        group["dtypes"][name] = group["dtypes"].get(name, 0) + 1
    return [{"group": name, **group} for name, group in groups.items()]


def _tensor(source: Source, key: str) -> dict[str, Any]:
    shape, dtype = source.shape(key), source.dtype(key)
    told: dict[str, Any] = {
        "name": key,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(shape),
        "bytes": math.prod(shape) * dtype.itemsize,
    }
    if isinstance(source, CheckpointReader):
        pieces: list[Mapping[str, Any]] = [
            {"file": piece.file, "name": piece.name, "offset": list(box.offset), "size": list(box.size)}
            for piece, box in source.pieces(key)
        ]
        told["pieces"] = pieces
    return told
