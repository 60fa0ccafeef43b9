"""A rank's share of a data set that can only be read through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import IterableDataset

from ds_core.data.order import tail_rows

__all__ = ["RankStream"]


class RankStream(IterableDataset[list[Any]]):
    """Lists of samples, one per micro-batch of this rank, taken from the whole stream by Note [Exactly once].

    Every rank reads the whole stream and keeps its share, so all must see the same order.

    Args:
        source: the data set; read from its beginning each time.
        batch_size: samples per rank and batch.
        rank: this rank among `ranks`.
        ranks: number of data-parallel ranks.
        skip: samples of the whole stream that have been consumed already.
        drop_last: leave out a last global batch that is short; otherwise it is padded.
    """

    def __init__(
        self, source: Iterable[Any], batch_size: int, *, rank: int, ranks: int, skip: int, drop_last: bool
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.rank = rank
        self.ranks = ranks
        self.skip = skip
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[Any]]:
        global_batch = self.batch_size * self.ranks
        mine: list[Any] = []
        # Padding repeats the first samples of the tail; no more than one per rank, so no more than these are kept.
        head: list[Any] = []
        count = 0
        for index, sample in enumerate(self.source):
            if index < self.skip:
                continue
            if count % self.ranks == self.rank:
                mine.append(sample)
            if count < self.ranks:
                head.append(sample)
            count += 1
            if count == global_batch:
                yield mine
                mine, head, count = [], [], 0
        if count and not self.drop_last:
            if len(mine) < tail_rows(count, self.ranks):
                padding = (self.rank + len(mine) * self.ranks) % count
                mine.append(head[padding])
            yield mine
