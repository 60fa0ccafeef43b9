"""`Shelf`: where this rank's shards of parameters lie at stage 3: the device, host memory, or files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from ds_core.aio import SwapStore, make_io
from ds_zero.offload.host import HOST, host_empty
from ds_zero.offload.shards import KEY, FileShards, Shard

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator
    from ds_core.build import Build
    from ds_core.flat import FlatGroup
    from ds_zero.config import ZeroConfig

__all__ = ["FileShelf", "HostShelf", "Shelf", "make_shelf"]


class Shelf:
    """Shards beside the parameters they are of.

    Attributes:
        files: keeps the shards that have no memory.
    """

    files: FileShards | None = None

    def plan(self, groups: Sequence[FlatGroup], whole: Collection[int]) -> None:
        """Told, before `memory` is asked, of all groups and of the units that have no shards to keep."""

    def memory(self, flat: FlatGroup, index: int) -> torch.Tensor | None:
        """Zeros for the shard of one bucket; None where `files` keeps it, as `name` says."""
        return torch.zeros(_numel(flat, index), dtype=flat.dtype, device=flat.device)

    def name(self, flat: FlatGroup, index: int) -> str:
        """What `files` knows the shard by."""
        return f"{id(flat)}/{index}"

    def close(self) -> None:
        """Removes files."""


class HostShelf(Shelf):
    """Shards in host memory, page-locked by `accelerator` where one is given."""

    def __init__(self, accelerator: Accelerator | None) -> None:
        self._accelerator = accelerator

    def memory(self, flat: FlatGroup, index: int) -> torch.Tensor | None:
        """See `Shelf.memory`."""
        return host_empty(_numel(flat, index), flat.dtype, self._accelerator).zero_()


class FileShelf(Shelf):
    """Shards in a file, some of them in host memory."""

    def __init__(self, files: FileShards) -> None:
        self.files: FileShards | None = files
        self._resident: dict[str, torch.Tensor] = {}

    def plan(self, groups: Sequence[FlatGroup], whole: Collection[int]) -> None:
        """Decides which stay in memory, the first ones as the model has them."""
        assert self.files is not None
        shards = []
        for flat in groups:
            for index, bucket in enumerate(flat.layout.buckets):
                if bucket.unit not in whole:
                    slots = flat.layout.slots[bucket.first : bucket.last]
                    title = slots[0].name if len(slots) == 1 else f"{slots[0].name} to {slots[-1].name}"
                    shards.append(Shard(self.name(flat, index), title, _numel(flat, index), flat.dtype))
        self._resident = self.files.plan(shards)

    def memory(self, flat: FlatGroup, index: int) -> torch.Tensor | None:
        """See `Shelf.memory`."""
        return self._resident.pop(self.name(flat, index), None)

    def close(self) -> None:
        """Removes the file."""
        assert self.files is not None
        self.files.close()


def make_shelf(build: Build, config: ZeroConfig) -> Shelf:
    """What ``offload_param`` asks for; where the device is the host, cpu is what is done anyway.

    Raises:
        OffloadError: the folder for files cannot be used.
    """
    offload = config.offload_param
    accelerator = build.accelerator if offload.pin_memory else None
    if offload.device == "none" or (offload.device == "cpu" and build.device.type == HOST.type):
        return Shelf()
    if offload.device == "cpu":
        return HostShelf(accelerator)
    assert offload.nvme_path is not None
    io = make_io(build.accelerator, build.config["aio"])
    try:
        store = SwapStore(offload.nvme_path, build.rank, io, buffer_count=offload.buffer_count, setting=KEY)
    except BaseException:
        io.close()
        raise
    files = FileShards(
        store, io, buffer_numel=offload.buffer_size, resident_numel=offload.max_in_cpu, accelerator=accelerator
    )
    return FileShelf(files)


def _numel(flat: FlatGroup, index: int) -> int:
    return flat.layout.buckets[index].numel // flat.layout.shards
