"""Parameters that were sharded one by one before any engine: what `Init` leaves, and engines take over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

__all__ = ["gathered_pieces"]


@contextmanager
def gathered_pieces(members: Sequence[torch.nn.Parameter], modifier_rank: int | None) -> Iterator[None]:
    """Nothing yet."""
    yield
