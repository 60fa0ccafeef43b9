"""Where the shards of a flat group lie, and the full buffers of what is small enough to stay whole."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from ds_core import comm
from ds_core.layout import Range, intersect
from ds_core.placeholder import placeholder
from ds_core.values import Source, Values

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ds_core.flat import FlatGroup

__all__ = ["ShardedValues"]


class ShardedValues(Values):
    """This rank's shard of every bucket; buckets of the units in `whole` are kept whole, their shard a view.

    Args:
        flat: the group.
        rank, ranks: which shard.
        whole: units whose buckets stay whole on every rank.
        device: where shards live; buckets that stay whole are on the group's device.
    """

    def __init__(
        self,
        flat: FlatGroup,
        *,
        rank: int,
        ranks: int,
        group: ProcessGroup | None,
        whole: Collection[int],
        device: torch.device,
    ) -> None:
        self._flat = flat
        self._rank = rank
        self._ranks = ranks
        self._group = group
        self.wholes: list[torch.Tensor | None] = []
        """Per bucket, the values of all ranks where they stay."""
        self.shards: list[torch.Tensor] = []
        """Per bucket, this rank's values, 1-D."""
        for bucket in flat.layout.buckets:
            if bucket.unit in whole:
                full = torch.zeros(bucket.numel, dtype=flat.dtype, device=flat.device)
                own = bucket.shard(rank, ranks)
                self.wholes.append(full)
                self.shards.append(full[own.start - bucket.start : own.stop - bucket.start])
            else:
                self.wholes.append(None)
                self.shards.append(torch.zeros(bucket.numel // ranks, dtype=flat.dtype, device=device))

    def of(self, span: Range) -> torch.Tensor:
        """See `Values.of`."""
        index = self._flat.layout.bucket_at(span.start)
        own = self._flat.layout.buckets[index].shard(self._rank, self._ranks)
        return self.shards[index][span.start - own.start : span.stop - own.start]

    def held(self) -> tuple[Range, ...]:
        """This rank's part of every bucket."""
        return self._flat.layout.shard_ranges(self._rank)

    def tensors(self) -> list[torch.Tensor]:
        """Shards, and buckets that stay whole."""
        return [*self.shards, *(whole for whole in self.wholes if whole is not None)]

    def fill(self, source: Source) -> None:
        """Keeps this rank's part of each parameter and leaves a stand-in; what stays whole becomes a view."""
        layout = self._flat.layout
        with torch.no_grad():
            for index, bucket in enumerate(layout.buckets):
                for slot in range(bucket.first, bucket.last):
                    self._take(index, slot, source(self._flat.parameters[slot]))
            for parameter in self._flat.parameters:
                if not parameter.numel():
                    parameter.data = torch.empty(parameter.shape, dtype=self._flat.dtype, device=self._flat.device)

    def _take(self, index: int, place: int, value: torch.Tensor) -> None:
        bucket, slot = self._flat.layout.buckets[index], self._flat.layout.slots[place]
        parameter, whole = self._flat.parameters[place], self.wholes[index]
        if whole is not None:
            view = whole[slot.start - bucket.start : slot.stop - bucket.start].view(slot.shape)
            view.copy_(value)
            parameter.data = view
            return
        own = bucket.shard(self._rank, self._ranks)
        mine = intersect(own, slot.start, slot.stop)
        if mine is not None:
            part = value.reshape(-1)[mine.start - slot.start : mine.stop - slot.start]
            self.shards[index][mine.start - own.start : mine.stop - own.start].copy_(part)
        parameter.data = placeholder(slot.shape, self._flat.dtype, self._flat.device)

    def gather_whole(self) -> None:
        """Brings the parts of all ranks into the buckets that stay whole, in place. Called on all ranks."""
        for whole, shard in zip(self.wholes, self.shards, strict=True):
            if whole is not None and self._ranks > 1:
                comm.all_gather_into_tensor(whole, shard, group=self._group)

    def close(self) -> None:
        """Gathers everything into ordinary parameters. Called on all ranks."""
        layout = self._flat.layout
        for bucket, shard, whole in zip(layout.buckets, self.shards, self.wholes, strict=True):
            full = whole
            if full is None:
                full = torch.empty(bucket.numel, dtype=self._flat.dtype, device=self._flat.device)
                with comm.scope("final parameters"):
                    comm.all_gather_into_tensor(full, shard.to(full.device), group=self._group)
            for place in range(bucket.first, bucket.last):
                slot = layout.slots[place]
                view = full[slot.start - bucket.start : slot.stop - bucket.start].view(slot.shape)
                self._flat.parameters[place].data = view
        self.shards, self.wholes = [], []
