"""Where the shards of a flat group lie, and the full buffers of what is small enough to stay whole."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch

from ds_core import comm
from ds_core.layout import Range, intersect
from ds_core.placeholder import placeholder, show
from ds_core.values import Source, Values

if TYPE_CHECKING:
    from ds_core.flat import FlatGroup
    from ds_core.holdings import Replicas
    from ds_zero.offload.shelf import Shelf

__all__ = ["ShardedValues"]


class ShardedValues(Values):
    """This rank's shard of every bucket; buckets of the units in `whole` are kept whole, their shard a view.

    Args:
        flat: the group.
        whole: units whose buckets stay whole on every rank.
        shelf: where shards live; buckets that stay whole are on the group's device.
    """

    def __init__(
        self,
        flat: FlatGroup,
        *,
        whole: Collection[int],
        shelf: Shelf,
    ) -> None:
        self._flat = flat
        self._rank = rank = flat.replicas.rank
        self._ranks = ranks = flat.replicas.ranks
        self._shelf = shelf
        self.wholes: list[torch.Tensor | None] = []
        """Per bucket, the values of all ranks where they stay."""
        self.shards: list[torch.Tensor | None] = []
        """Per bucket, this rank's values, 1-D, where they are in memory; `shard` has them wherever they are."""
        for index, bucket in enumerate(flat.layout.buckets):
            if bucket.unit in whole:
                full = torch.zeros(bucket.numel, dtype=flat.dtype, device=flat.device)
                own = bucket.shard(rank, ranks)
                self.wholes.append(full)
                self.shards.append(full[own.start - bucket.start : own.stop - bucket.start])
            else:
                self.wholes.append(None)
                self.shards.append(shelf.memory(flat, index))

    def of(self, span: Range) -> torch.Tensor:
        """See `Values.of`."""
        index, start = self._find(span)
        return self.shard(index)[start : start + span.numel]

    def home(self, span: Range) -> torch.device | None:
        """See `Values.home`."""
        shard = self.shards[self._find(span)[0]]
        return None if shard is None else shard.device

    def put(self, span: Range, values: torch.Tensor) -> None:
        """See `Values.put`."""
        index, start = self._find(span)
        if self.shards[index] is not None:
            super().put(span, values)
        else:
            assert self._shelf.files is not None
            self._shelf.files.write(self._shelf.name(self._flat, index), start, values)

    def shard(self, index: int, *, ahead: bool = False) -> torch.Tensor:
        """This rank's values of a bucket, 1-D; until the next call where they are in a file.

        `ahead`: this is a gather, and others will follow in the order they had before.
        """
        shard = self.shards[index]
        if shard is not None:
            return shard
        assert self._shelf.files is not None
        return self._shelf.files.read(self._shelf.name(self._flat, index), ahead=ahead)

    def _find(self, span: Range) -> tuple[int, int]:
        """The bucket of `span`, and where it begins in this rank's shard."""
        index = self._flat.layout.bucket_at(span.start)
        return index, span.start - self._flat.layout.buckets[index].shard(self._rank, self._ranks).start

    def held(self) -> tuple[Range, ...]:
        """This rank's part of every bucket."""
        return self._flat.layout.shard_ranges(self._rank)

    def is_shown(self, place: int) -> bool:
        """Where its bucket stays whole."""
        start = self._flat.layout.slots[place].start
        return self.wholes[self._flat.layout.bucket_at(start)] is not None

    def tensors(self) -> list[torch.Tensor]:
        """Shards, and buckets that stay whole."""
        return [tensor for tensor in (*self.shards, *self.wholes) if tensor is not None]

    def fill(self, source: Source) -> None:
        """Keeps this rank's part of each parameter and leaves a stand-in; what stays whole becomes a view."""
        layout = self._flat.layout
        with torch.no_grad():
            for index, bucket in enumerate(layout.buckets):
                for slot in range(bucket.first, bucket.last):
                    self._take(index, slot, source(self._flat.parameters[slot]))
            for parameter in self._flat.parameters:
                if not parameter.numel():
                    show(parameter, torch.empty(parameter.shape, dtype=self._flat.dtype, device=self._flat.device))

    def _take(self, index: int, place: int, value: torch.Tensor) -> None:
        bucket, slot = self._flat.layout.buckets[index], self._flat.layout.slots[place]
        parameter, whole = self._flat.parameters[place], self.wholes[index]
        if whole is not None:
            view = whole[slot.start - bucket.start : slot.stop - bucket.start].view(slot.shape)
            view.copy_(value)
            show(parameter, view)
            return
        own = bucket.shard(self._rank, self._ranks)
        mine = intersect(own, slot.start, slot.stop)
        if mine is not None:
            part = value.reshape(-1)[mine.start - slot.start : mine.stop - slot.start]
            self.put(mine, part)
        show(parameter, placeholder(slot.shape, self._flat.dtype, self._flat.device))

    def gather_whole(self, share: Callable[[torch.Tensor, Replicas], None]) -> None:
        """Brings the parts of all ranks into the buckets that stay whole, through `share`. Called on all ranks."""
        for whole in self.wholes:
            if whole is not None:
                share(whole, self._flat.replicas)

    def close(self) -> None:
        """Gathers everything into ordinary parameters. Called on all ranks."""
        layout = self._flat.layout
        for index, (bucket, whole) in enumerate(zip(layout.buckets, self.wholes, strict=True)):
            full = whole
            if full is None:
                full = torch.empty(bucket.numel, dtype=self._flat.dtype, device=self._flat.device)
                with comm.scope("final parameters"):
                    comm.all_gather_into_tensor(
                        full, self.shard(index).to(full.device), group=self._flat.replicas.group
                    )
            for place in range(bucket.first, bucket.last):
                slot = layout.slots[place]
                view = full[slot.start - bucket.start : slot.stop - bucket.start].view(slot.shape)
                show(self._flat.parameters[place], view)
        self.shards, self.wholes = [], []
