"""Which rank reads which sample when: pure functions of seed, epoch, length and sizes.

Note [Exactly once]
    The order of an epoch depends on seed and epoch only. A *global batch* is the next ``batch_size * ranks`` samples
    of it, and rank r takes every ``ranks``-th of them, beginning with the r-th. So a position in an epoch is one
    number, the samples consumed by all ranks together, and it means the same for any number of ranks: a run that
    restarts with another number continues with the first sample nobody has seen. The last global batch may be short.
    With ``drop_last`` it is left out. Otherwise it is padded with repeats of its own samples, at most ``ranks - 1`` of
    them, so that every rank gets a last batch of the same size; these are the only samples seen twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

__all__ = ["GlobalBatches", "Step", "epoch_order", "epoch_seed", "tail_rows"]


def epoch_seed(seed: int, epoch: int) -> int:
    """A 63-bit seed for one epoch; no two pairs of small numbers share one, as ``seed + epoch`` would."""
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_order(length: int, seed: int, epoch: int, *, shuffle: bool) -> torch.Tensor:
    """Sample indices of the epoch in global order, int64 of shape (length,)."""
    if not shuffle:
        return torch.arange(length)
    return torch.randperm(length, generator=torch.Generator().manual_seed(epoch_seed(seed, epoch)))


def tail_rows(count: int, ranks: int) -> int:
    """Rows each rank gets of a global batch of `count` samples: rounded up, by padding."""
    return -(-count // ranks)


@dataclass(frozen=True, slots=True)
class Step:
    """One global batch: positions ``start`` to ``start + count`` of the epoch's order."""

    start: int
    count: int

    def positions(self, rank: int, ranks: int) -> list[int]:
        """Positions of `rank`'s samples, padding included; of the same length on every rank."""
        rows = tail_rows(self.count, ranks)
        return [self.start + (rank + row * ranks) % self.count for row in range(rows)]


@dataclass(frozen=True, slots=True)
class GlobalBatches:
    """The global batches of an epoch of `length` samples, from any position."""

    length: int
    global_batch: int
    drop_last: bool

    def count(self, consumed: int = 0) -> int:
        """Global batches from `consumed` to the end of the epoch."""
        left = max(self.length - consumed, 0)
        return left // self.global_batch if self.drop_last else -(-left // self.global_batch)

    def steps(self, consumed: int = 0) -> Iterator[Step]:
        """The global batches from `consumed` on."""
        for index in range(self.count(consumed)):
            start = consumed + index * self.global_batch
            yield Step(start, min(self.global_batch, self.length - start))


def rank_indices(order: torch.Tensor, positions: Sequence[int]) -> list[int]:
    """Sample indices at the positions."""
    indices: list[int] = order[torch.tensor(positions)].tolist()
    return indices
