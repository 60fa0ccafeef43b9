"""Boxes: n-dimensional pieces of a tensor, as torch.distributed.checkpoint plans them, and flat ranges cut into boxes.

A shard of ZeRO is a range of the flattened tensor, which is no box unless it begins and ends with a row. Such a range
is cut into as few boxes as possible, at most 2 d - 1 in d dimensions, each of which is again one flat range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Box", "Run", "cut", "intersect", "runs", "span", "within"]


class Box(NamedTuple):
    """Elements ``offset[i] <= index[i] < offset[i] + size[i]`` of a tensor."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.size)


class Run(NamedTuple):
    """`numel` neighbours: from element `start` of the flattened tensor, and element `inner` of the flattened box."""

    start: int
    inner: int
    numel: int


def cut(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """Elements ``start <= i < stop`` of a row-major tensor as boxes, in order."""
    if start >= stop:
        return []
    if not shape:
        return [Box((), ())]
    row = math.prod(shape[1:])
    first, last = start // row, -(-stop // row)
    if start == first * row and stop == last * row:
        return [Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))]
    if last - first == 1:
        return _in_row(shape, first, start, stop)
    found: list[Box] = []
    if start % row:
        first += 1
        found += _in_row(shape, first - 1, start, first * row)
    tail = stop % row
    if stop - tail > first * row:
        found += cut(shape, first * row, stop - tail)
    if tail:
        found += _in_row(shape, last - 1, stop - tail, stop)
    return found


def _in_row(shape: Sequence[int], index: int, start: int, stop: int) -> list[Box]:
    row = math.prod(shape[1:])
    inner = cut(shape[1:], start - index * row, stop - index * row)
    return [Box((index, *box.offset), (1, *box.size)) for box in inner]


def within(shape: Sequence[int], box: Box) -> bool:
    """Whether the box has as many dimensions as the tensor and lies inside of it."""
    return len(box.offset) == len(box.size) == len(shape) and all(
        o >= 0 and s >= 0 and o + s <= limit for o, s, limit in zip(box.offset, box.size, shape, strict=True)
    )


def intersect(left: Box, right: Box) -> Box | None:
    """What two boxes of one tensor have in common, or None."""
    offset = tuple(map(max, left.offset, right.offset))
    ends = (min(a + s, b + t) for a, s, b, t in zip(left.offset, left.size, right.offset, right.size, strict=True))
    size = tuple(end - begin for end, begin in zip(ends, offset, strict=True))
    return Box(offset, size) if all(extent > 0 for extent in size) else None


def span(shape: Sequence[int], box: Box) -> tuple[int, int]:
    """First element of the box in the flattened tensor, and one past its last."""
    if not box.numel:
        return 0, 0
    first = last = 0
    for extent, offset, size in zip(shape, box.offset, box.size, strict=True):
        first = first * extent + offset
        last = last * extent + offset + size - 1
    return first, last + 1


def runs(shape: Sequence[int], box: Box, start: int, stop: int) -> Iterator[Run]:
    """The elements of `box` among ``start <= i < stop`` of the flattened tensor, joined as far as they are neighbours.

    A box that is one flat range gives at most one run.
    """
    length = 1  # elements that are neighbours in the tensor and in the box
    outer = len(shape)
    while outer and (outer == len(shape) or box.size[outer] == shape[outer]):
        outer -= 1
        length *= box.size[outer]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    base = sum(o * stride for o, stride in zip(box.offset, strides, strict=True))
    counts = box.size[:outer]
    for index in range(math.prod(counts)):
        begin, rest = base, index
        for axis in reversed(range(outer)):
            rest, place = divmod(rest, counts[axis])
            begin += place * strides[axis]
        low, high = max(begin, start), min(begin + length, stop)
        if low < high:
            yield Run(low, index * length + low - begin, high - low)
