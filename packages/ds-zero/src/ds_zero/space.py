"""The sharded update space: gradients are reduce-scattered, each rank updates its shard, parameters are gathered.

Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (2020), section 5.1,
partitioned optimizer states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_core import comm
from ds_core.layout import Bucket, Range
from ds_core.space import FlatGroup, UpdateSpace

if TYPE_CHECKING:
    import torch

__all__ = ["ShardedSpace"]


class ShardedSpace(UpdateSpace):
    """Stage 1: rank r owns the r-th part of every bucket. Both collectives work in place, in the flat buffers."""

    use_reduce_scatter: bool = True

    def owned(self, flat: FlatGroup) -> tuple[Range, ...]:
        """This rank's part of every bucket."""
        return flat.layout.shard_ranges(self.rank)

    def reduce_bucket(self, flat: FlatGroup, index: int, piece: torch.Tensor) -> None:
        """Sums the bucket over ranks into this rank's part of it; the rest is left undefined."""
        if not self.use_reduce_scatter:
            comm.all_reduce(piece, group=self.group)
            return
        bucket = flat.layout.buckets[index]
        own = bucket.shard(self.rank, self.ranks)
        out = piece[own.start - bucket.start : own.stop - bucket.start]
        comm.reduce_scatter_tensor(out, piece, group=self.group)

    def publish(self) -> None:
        """Gathers every rank's updated parts of the working parameters."""
        if self.ranks == 1:
            return
        with comm.scope("parameters"):
            for flat in self.flats:
                for bucket in flat.layout.buckets:
                    self._gather(flat, bucket)

    def _gather(self, flat: FlatGroup, bucket: Bucket) -> None:
        own = bucket.shard(self.rank, self.ranks)
        whole = flat.working[bucket.start : bucket.stop]
        comm.all_gather_into_tensor(whole, flat.working[own.start : own.stop], group=self.group)
