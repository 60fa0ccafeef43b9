"""The sharded update space: gradients are reduce-scattered, each rank updates its shard, parameters are gathered.

Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (2020), section 5:
partitioned optimizer states (stage 1) and gradients (stage 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.exchange import Reduced
from ds_core.layout import Range
from ds_core.space import UpdateSpace

if TYPE_CHECKING:
    from ds_core.flat import FlatGroup
    from ds_core.holdings import Replicas

__all__ = ["ShardedSpace"]


class ShardedSpace(UpdateSpace):
    """Stages 1 and 2: rank r owns the r-th part of every bucket; all ranks hold all working values.

    The two stages differ in ``policy.every_backward`` only: whether gradients wait for the step in whole buckets, or
    are reduced to this rank's part in every backward.
    """

    use_reduce_scatter: bool = True
    use_all_gather: bool = True

    def owned(self, flat: FlatGroup) -> tuple[Range, ...]:
        """This rank's part of every bucket."""
        return flat.layout.shard_ranges(flat.replicas.rank)

    def reduce_bucket(self, flat: FlatGroup, index: int, piece: torch.Tensor, async_op: bool) -> Reduced:
        """Sums the bucket over ranks and keeps this rank's part of it."""
        bucket, holders = flat.layout.buckets[index], flat.replicas
        own = bucket.shard(holders.rank, holders.ranks)
        if not self.use_reduce_scatter:
            handle: Any = comm.all_reduce(piece, group=holders.group, async_op=async_op)
            part = piece[own.start - bucket.start : own.stop - bucket.start]
            return Reduced(part, own.start, handle, is_part=True)
        out = torch.empty(own.numel, dtype=piece.dtype, device=piece.device)
        handle = comm.reduce_scatter_tensor(out, piece, group=holders.group, async_op=async_op)
        return Reduced(out, own.start, handle)

    def publish(self) -> None:
        """Gathers every rank's updated parts of the working parameters, in place."""
        with comm.scope("parameters"):
            for flat in self.flats:
                for bucket in flat.layout.buckets:
                    self.share(flat.working(bucket.whole), flat.replicas)

    def share(self, whole: torch.Tensor, holders: Replicas) -> None:
        """Makes a bucket whole, in place, from the part each of `holders` has in its own place of it."""
        if holders.ranks == 1:
            return
        parts = whole.view(holders.ranks, -1)
        if self.use_all_gather:
            comm.all_gather_into_tensor(whole, parts[holders.rank], group=holders.group)
            return
        for part, member in zip(parts, holders.members, strict=True):
            comm.broadcast(part, src=member, group=holders.group)
