"""Pictures made in memory in place of a download: each class is a coarse pattern, under noise."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

CLASSES = 10


def pictures(count: int, side: int = 16) -> TensorDataset:
    """`count` pictures float32 (3, side, side) with their classes, the same on every rank and in every run."""
    generator = torch.Generator().manual_seed(5)
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=generator)
    classes = torch.randint(0, CLASSES, (count,), generator=generator)
    clean = torch.nn.functional.interpolate(patterns[classes], size=(side, side))
    return TensorDataset(clean + 0.3 * torch.randn(count, 3, side, side, generator=generator), classes)


def loader(data: TensorDataset, batch: int, ranks: int | None = None, rank: int | None = None) -> DataLoader:
    """Batches of this rank in the order of torch's sampler, the same in every epoch."""
    return DataLoader(data, batch, sampler=DistributedSampler(data, ranks, rank))
