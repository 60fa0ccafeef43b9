"""Writes what any source holds as a checkpoint of this project's format: in one process, without an engine.

Elements go through the same blocks as those of an engine, and are hashed, written and committed by the same code.
Memory is a few blocks, and a piece of a tensor: one of more than `PIECE_BYTES` is cut between rows.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.manage.describe import values_of
from ds_core.checkpoint.saving.commit import Header, commit
from ds_core.checkpoint.saving.planner import EnginePlanner
from ds_core.checkpoint.saving.share import Written, lay_out
from ds_core.checkpoint.saving.stream import stream
from ds_core.checkpoint.saving.working import begin_folder
from ds_core.checkpoint.source import Source
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import check_tag, data_name, to_json
from ds_core.checkpoint.storage.folder import tags, working_folder
from ds_core.checkpoint.storage.room import check_room
from ds_core.checkpoint.weights.source_weights import tied_names
from ds_core.errors import CheckpointError
from ds_core.state import Deferred, Fragment

__all__ = ["source_bytes", "write_source"]

PIECE_BYTES = 64 << 20


def write_source(
    source: Source,
    root: Path,
    tag: str,
    *,
    save_latest: bool = True,
    overwrite: bool = False,
    told: Callable[[int], Any] = lambda nbytes: None,
    disk: Disk = DISK,
) -> Path:
    """Writes ``root/tag`` and returns it.

    Args:
        source: an open checkpoint of any format.
        root: folder of checkpoints; made when absent.
        tag: the new checkpoint's.
        save_latest: let ``latest`` name it.
        overwrite: replace a checkpoint of this tag.
        told: gets the bytes read, piece by piece.
        disk: operations on files.

    Raises:
        CheckpointError: the tag is taken or no name, the disk has no room, or the source cannot be read.
        OSError: the disk refused something; nothing that was there before is gone.
    """
    if check_tag(tag) in tags(root) and not overwrite:
        raise CheckpointError(f"{root} has a checkpoint {tag!r} already; give another tag, or ask to overwrite it")
    header = Header(
        identity=secrets.token_hex(8),
        tag=tag,
        is_latest=save_latest,
        axes={},
        ranks=1,
        plan={"imported_from": source.format},
        counters=source.counters,
        client_state=source.client_state,
    )
    to_json(header.client_state, "client_state")
    planner = EnginePlanner(list(_fragments(source, told)))
    share = lay_out(planner.create_local_plan())
    check_room(root, share.file_bytes, disk)
    work = working_folder(root, tag, header.identity)
    begin_folder(work, disk)
    try:
        digests = stream(work / data_name(0), share, planner, disk)
        written = Written(share.plan, data_name(0), share.file_bytes, digests, values_of(source))
        return commit(root, work, header, [written], disk)
    except BaseException:
        disk.remove_folder(work)
        raise


def _fragments(source: Source, told: Callable[[int], Any]) -> Iterator[Fragment]:
    """Every tensor in pieces that are loaded when they are written."""
    for key in _keys(source):
        shape, dtype = source.shape(key), source.dtype(key)
        numel = math.prod(shape)
        row = numel // shape[0] if shape and shape[0] else 1
        step = max(1, PIECE_BYTES // (dtype.itemsize * max(1, row))) * max(1, row)

        def load(start: int, stop: int, key: str = key, dtype: torch.dtype = dtype) -> torch.Tensor:
            values = torch.empty(stop - start, dtype=dtype)
            source.read(key, values, start)
            told(values.nbytes)
            return values

        for start in range(0, numel, step):
            stop = min(start + step, numel)
            yield Fragment(key, shape, start, stop, Deferred(dtype, load), start)


def source_bytes(source: Source) -> int:
    """What `write_source` will tell of in all."""
    return sum(math.prod(source.shape(key)) * source.dtype(key).itemsize for key in _keys(source))


def _keys(source: Source) -> list[str]:
    """All tensors, but further names of one that is there under its first."""
    known = set(source.keys())
    tied = tied_names(source)
    doubled = {f"model/{alias}" for alias, name in tied.items() if f"model/{name}" in known}
    return [key for key in source.keys() if key not in doubled]  # noqa: SIM118
