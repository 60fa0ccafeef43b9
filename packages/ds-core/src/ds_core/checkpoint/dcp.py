"""The format as storage of torch.distributed.checkpoint: any state dict, DTensors of FSDP2 among them, in and out.

    dcp.save({"model": model.state_dict()}, storage_writer=SafetensorsWriter("runs/a/step10"))
    dcp.load({"model": model.state_dict()}, storage_reader=SafetensorsReader("runs/a/step10"))

What an engine saved is read in the same way, by its logical names: ``dcp.load({"model/fc.weight": tensor}, ...)``.
Tensors become pieces of safetensors files; everything else must be JSON and is kept in the manifest, never pickled.
"""

from __future__ import annotations

import io
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ds_core.checkpoint.saving.commit import Header, commit
from ds_core.checkpoint.saving.planner import box_of, item_for
from ds_core.checkpoint.saving.share import Written, lay_out
from ds_core.checkpoint.saving.stream import stream
from ds_core.checkpoint.saving.working import begin_folder, clear_leftovers
from ds_core.checkpoint.storage.boxes import Box, runs
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import check_tag, data_name, to_json
from ds_core.checkpoint.storage.folder import working_folder
from ds_core.checkpoint.storage.reader import CheckpointReader
from ds_core.errors import CheckpointError

__all__ = ["SafetensorsReader", "SafetensorsWriter"]

PLANNER_DATA = "torch.distributed.checkpoint"
"""The manifest's value that holds what DCP's planner wants back: the path of every flattened name."""


class _Place(NamedTuple):
    """What the coordinator tells every rank: which save this is, and the rank's number among the plans."""

    identity: str
    rank: int


class _Stored(NamedTuple):
    """What a rank tells the coordinator of one item: its name in the file, and the file; or its JSON value."""

    file: str
    number: int
    file_bytes: int
    blocks: Sequence[str]
    value: Any


class SafetensorsWriter(StorageWriter):
    """Writes one checkpoint, committed as `ds_core.checkpoint.saving.commit` describes. One of them on every rank.

    Args:
        path: the folder of the checkpoint; its name is the tag, its parent the folder of checkpoints.
        is_latest: let the file ``latest`` beside it name it.
        disk: operations on files.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_latest: bool = True, disk: Disk = DISK) -> None:
        self.path: Path = Path(path)
        self._is_latest: bool = is_latest
        self._disk: Disk = disk
        self._identity: str = ""
        self._ranks: int = 1

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new save begins, into `checkpoint_id` where one is given."""
        if checkpoint_id is not None:
            self.path = Path(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Checks the tag."""
        check_tag(self.path.name)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Makes the working folder, and tells every rank which it is."""
        self._identity, self._ranks = secrets.token_hex(8), len(plans)
        clear_leftovers(self.path.parent, self._disk)
        begin_folder(self._work(self._identity), self._disk)
        return [replace(plan, storage_data=_Place(self._identity, rank)) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's tensors, through 64 MiB of host memory."""
        place: _Place = plan.storage_data
        results = [self._value(item, planner) for item in plan.items if item.type is WriteItemType.BYTE_IO]
        share = lay_out(SavePlan([item for item in plan.items if item.type is not WriteItemType.BYTE_IO]))
        if share.plan.items:
            path = self._work(place.identity) / data_name(place.rank)
            try:
                blocks = stream(path, share, planner, self._disk)
            except OSError as error:
                raise CheckpointError(f"{path} could not be written: {error}") from error
            for index, item in enumerate(share.plan.items):
                stored = _Stored(data_name(place.rank), index, share.file_bytes, blocks, None)
                size_bytes = box_of(item).numel * _dtype(item).itemsize
                results.append(WriteResult(item.index, size_bytes, stored))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def _value(self, item: WriteItem, planner: SavePlanner) -> WriteResult:
        lookup = getattr(planner, "lookup_object", None)
        if lookup is None:
            raise CheckpointError(
                f"{item.index.fqn!r} is no tensor and the planner {type(planner).__name__} has no lookup_object to ask "
                "for its value; use DefaultSavePlanner"
            )
        value = lookup(item.index)
        text = to_json(value, item.index.fqn)
        return WriteResult(item.index, len(text), _Stored("", -1, 0, (), value))

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commits the checkpoint."""
        planned = metadata.planner_data or {}
        values: dict[str, Any] = {PLANNER_DATA: {key: list(path) for key, path in planned.items()}}
        shares = [_written(rank, each, metadata, values) for rank, each in enumerate(results)]
        header = Header(
            identity=self._identity,
            tag=self.path.name,
            is_latest=self._is_latest,
            axes={},
            ranks=self._ranks,
            plan={"saved_by": "torch.distributed.checkpoint"},
            counters={},
            client_state={},
        )
        written = [share for share in shares if share.file_bytes] or shares[:1]
        written[0] = replace(written[0], values=values)
        commit(self.path.parent, self._work(self._identity), header, written, self._disk)

    def _work(self, identity: str) -> Path:
        return working_folder(self.path.parent, self.path.name, identity)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can be the path of a checkpoint."""
        try:
            check_tag(Path(checkpoint_id).name)
        except CheckpointError:
            return False
        return True

    def storage_meta(self) -> StorageMeta | None:
        """Where it goes."""
        return StorageMeta(checkpoint_id=self.path)


def _written(rank: int, results: Sequence[WriteResult], metadata: Metadata, values: dict[str, Any]) -> Written:
    """A rank's share; its JSON values go to `values`."""
    found: dict[int, WriteItem] = {}
    file: _Stored | None = None
    for result in results:
        stored: _Stored = result.storage_data
        if stored.number < 0:
            values[result.index.fqn] = stored.value
            continue
        file = stored
        tensor = metadata.state_dict_metadata[result.index.fqn]
        assert isinstance(tensor, TensorStorageMetadata), result
        chunk = next(c for c in tensor.chunks if result.index.offset in (None, c.offsets))
        box = Box(tuple(chunk.offsets), tuple(chunk.sizes))
        found[stored.number] = item_for(result.index.fqn, tensor.properties.dtype, tensor.size, box)
    plan = SavePlan([found[index] for index in sorted(found)])
    if file is None:
        return Written(plan, data_name(rank), 0, [], {})
    return Written(plan, file.file, file.file_bytes, list(file.blocks), {})


def _dtype(item: WriteItem) -> torch.dtype:
    assert item.tensor_data is not None, item
    return item.tensor_data.properties.dtype


class SafetensorsReader(StorageReader):
    """Reads one checkpoint, of an engine or of `SafetensorsWriter`. One of them on every rank.

    Args:
        path: the folder of the checkpoint.
        verify: check the hashes of all bytes first; each rank checks its share.
        disk: operations on files.

    Raises:
        CheckpointError: by its methods; the folder is no checkpoint, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True, disk: Disk = DISK) -> None:
        self.path: Path = Path(path)
        self._verify: bool = verify
        self._disk: Disk = disk
        self._reader: CheckpointReader | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new load begins, from `checkpoint_id` where one is given."""
        if checkpoint_id is not None:
            self.path = Path(checkpoint_id)
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _opened(self) -> CheckpointReader:
        if self._reader is None:
            self._reader = CheckpointReader(self.path, disk=self._disk)
        return self._reader

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the manifest says, in DCP's words."""
        manifest = self._opened().manifest
        found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        for key in manifest.tensors:
            chunks = [
                ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.size))
                for _, box in self._opened().pieces(key)
            ]
            properties = TensorProperties(dtype=self._opened().dtype(key))
            found[key] = TensorStorageMetadata(properties, torch.Size(self._opened().shape(key)), chunks)
        for name in manifest.values:
            if name != PLANNER_DATA:
                found[name] = BytesStorageMetadata()
        planned: Mapping[str, list[Any]] = manifest.values.get(PLANNER_DATA, {})
        data = {key: tuple(path) for key, path in planned.items()} or {key: (key,) for key in found}
        return Metadata(found, planner_data=data, storage_meta=StorageMeta(checkpoint_id=self.path))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Checks this rank's share of the bytes."""
        if self._verify:
            ranks = dist.is_available() and dist.is_initialized()
            self._opened().verify(*((dist.get_rank(), dist.get_world_size()) if ranks else (0, 1)))

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads each item straight into its place where that is contiguous."""
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                stream = io.BytesIO()
                torch.save(self._opened().value(item.storage_index.fqn), stream)  # JSON by origin; DCP wants bytes
                stream.seek(0)
                planner.load_bytes(item, stream)
            else:
                target = planner.resolve_tensor(item).detach()
                self._read(item, target)
                planner.commit_tensor(item, target)
        self._opened().close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, item: ReadItem, target: torch.Tensor) -> None:
        reader, index = self._opened(), item.storage_index
        shape = reader.shape(index.fqn)
        origin = _origin(index, shape)
        offset = tuple(base + inner for base, inner in zip(origin, item.storage_offsets, strict=True))
        box = Box(offset, tuple(item.lengths))
        out = target if target.is_contiguous() else torch.empty(box.size, dtype=target.dtype, device=target.device)
        flat = out.view(-1)
        for run in runs(shape, box, 0, math.prod(shape)):
            reader.read(index.fqn, flat[run.inner : run.inner + run.numel], run.start)
        if out is not target:
            target.copy_(out)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether there is a folder of that name."""
        return Path(checkpoint_id).is_dir()


def _origin(index: MetadataIndex, shape: Sequence[int]) -> tuple[int, ...]:
    """Where the stored piece begins."""
    return tuple(index.offset) if index.offset is not None else tuple(0 for _ in shape)
