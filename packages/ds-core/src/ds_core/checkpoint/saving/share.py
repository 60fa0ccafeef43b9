"""One rank's share of a checkpoint: its data file, and the note that tells the first rank what is in it.

The note, ``rank-00003.json`` in the folder that is being written, is how ranks tell each other that they are done: no
collective runs beside training, and a rank that fails or dies holds nobody up for long
(`ds_core.checkpoint.saving.liveness`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

from ds_core.aio.memory import byte_view
from ds_core.checkpoint.saving.blocks import Block, BlockSink
from ds_core.checkpoint.saving.planner import box_of, plan_from_json, plan_to_json
from ds_core.checkpoint.storage.disk import Disk
from ds_core.checkpoint.storage.files import data_name, read_whole, to_json, write_all, write_visibly
from ds_core.checkpoint.storage.manifest import LIMIT_BYTES, block_digest
from ds_core.checkpoint.storage.safetensors_file import header_for

__all__ = ["Share", "Written", "fill", "lay_out", "note_name", "persist", "read_note", "write_note"]

ALIGNMENT_BYTES = 4096


@dataclass(frozen=True)
class Share:
    """A data file, planned.

    Attributes:
        plan: its items in the order of the file: wider dtypes first.
        header: the beginning of the file.
        file_bytes: its length.
    """

    plan: SavePlan
    header: bytes
    file_bytes: int


@dataclass(frozen=True)
class Written:
    """A data file, written.

    Attributes:
        plan: its items; item ``i`` has the name ``t<i>``.
        file: its name.
        file_bytes: its length.
        blocks: the hash of every block.
        values: JSON values of the rank's parts.
    """

    plan: SavePlan
    file: str
    file_bytes: int
    blocks: list[str]
    values: Mapping[str, Any]


def lay_out(plan: SavePlan) -> Share:
    """The data file of a plan."""
    items = sorted(plan.items, key=lambda item: -_dtype(item).itemsize)
    header = header_for((f"t{index}", _dtype(item), box_of(item).size) for index, item in enumerate(items))
    data_bytes = sum(box_of(item).numel * _dtype(item).itemsize for item in items)
    return Share(SavePlan(items), header, len(header) + data_bytes)


def _dtype(item: Any) -> torch.dtype:
    dtype: torch.dtype = item.tensor_data.properties.dtype
    return dtype


def fill(sink: BlockSink, share: Share, planner: SavePlanner) -> None:
    """Copies the whole file into blocks; when it returns, nothing of the engine is looked at any more."""
    sink.write(torch.frombuffer(bytearray(share.header), dtype=torch.uint8))
    for item in share.plan.items:
        values = planner.resolve_data(item)
        assert isinstance(values, torch.Tensor), item
        sink.write(values.detach().contiguous().view(-1))
    sink.close()


def persist(path: Path, blocks: Generator[Block, None, None], share: Share, disk: Disk) -> list[str]:
    """Writes the blocks of a file and makes them durable; their hashes.

    Raises:
        OSError: the file cannot be written.
    """
    fd = disk.create(path, direct=True)
    try:
        digests: list[str] = []
        offset = 0
        with contextlib.closing(blocks):  # an error keeps this frame alive, and with it a block, unless it is closed
            for block in blocks:
                view = byte_view(block.memory)
                digests.append(block_digest(view[: block.used_bytes]))
                whole = -(-block.used_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                write_all(disk, fd, view[:whole], offset)
                offset += block.used_bytes
        if share.file_bytes % ALIGNMENT_BYTES:
            disk.truncate(fd, share.file_bytes)
        disk.sync(fd)
        return digests
    finally:
        disk.close(fd)


def note_name(rank: int) -> str:
    """Name of the note of a rank that is done."""
    return f"rank-{rank:05d}.json"


def write_note(work: Path, rank: int, written: Written, disk: Disk) -> None:
    """Tells the first rank that this one's file is durable.

    Raises:
        CheckpointError: a part keeps a value that is not JSON.
        OSError: the note cannot be written.
    """
    content = {
        "items": plan_to_json(written.plan),
        "bytes": written.file_bytes,
        "blocks": written.blocks,
        "values": written.values,
    }
    write_visibly(work / note_name(rank), to_json(content, "engine state").encode(), disk)


def read_note(work: Path, rank: int, disk: Disk) -> Written:
    """What `rank` wrote."""
    content = json.loads(read_whole(work / note_name(rank), LIMIT_BYTES, disk))
    plan = plan_from_json(content["items"])
    return Written(plan, data_name(rank), content["bytes"], content["blocks"], content["values"])
