"""Cuts owned ranges into what lives off the device and what stays, and into tiles. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ds_core.layout import ALIGNMENT_NUMEL, Range

__all__ = ["split", "tiles"]


def split(ranges: Sequence[Range], ratio: float) -> tuple[list[Range], list[Range]]:
    """The first `ratio` of the elements of `ranges`, and the rest; cut once, on an aligned element."""
    total = sum(part.numel for part in ranges)
    left = min(math.floor(ratio * total / ALIGNMENT_NUMEL + 0.5) * ALIGNMENT_NUMEL, total)
    away: list[Range] = []
    stays: list[Range] = []
    for part in ranges:
        numel = min(left, part.numel)
        left -= numel
        away += [Range(part.start, part.start + numel)] if numel else []
        stays += [Range(part.start + numel, part.stop)] if numel < part.numel else []
    return away, stays


def tiles(part: Range, numel: int) -> list[Range]:
    """`part` in pieces of at most `numel` elements, rounded down to the alignment, at least one unit of it."""
    step = max(numel // ALIGNMENT_NUMEL, 1) * ALIGNMENT_NUMEL
    return [Range(start, min(start + step, part.stop)) for start in range(part.start, part.stop, step)]
