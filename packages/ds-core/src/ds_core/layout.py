"""Plans how a list of parameters lies in one flat buffer, in buckets that divide evenly over shards.

Pure: names and shapes in, a frozen plan out. The same plan serves every stage, so all of them reduce the same buckets
and add the same numbers in the same order; and it serves estimates, for it needs no memory.

Note [Buckets end at parameters]
    A bucket holds whole parameters and is padded to ``shards x alignment`` elements, so a bucket is ready when its
    parameters are, and every shard of it starts on an aligned address. A parameter larger than the limit is a bucket
    of its own. A bucket never spans two units, which is what lets a unit be gathered and released by itself.

Note [Parameters start aligned]
    Matrix kernels may add in another order when an operand is not aligned, so a parameter inside a flat buffer starts
    where an allocator could have put it. The few elements skipped are zero, in parameters and in gradients.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ds_core.errors import ConfigError

__all__ = ["ALIGNMENT_NUMEL", "Bucket", "FlatLayout", "Range", "Slot", "intersect", "plan_layout"]

ALIGNMENT_NUMEL = 32
"""Elements a parameter's and a shard's start is aligned to: 64 bytes of a two-byte type, 128 of a four-byte one."""


@dataclass(frozen=True, slots=True)
class Range:
    """Elements ``start <= i < stop`` of a flat buffer."""

    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements in the range."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one parameter lies: its name, logical shape and first element in the flat buffer."""

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int = field(init=False)
    """Elements of the parameter."""

    def __post_init__(self) -> None:
        """Multiplies the shape out once."""
        object.__setattr__(self, "numel", math.prod(self.shape))

    @property
    def stop(self) -> int:
        """One past the last element in the flat buffer."""
        return self.start + self.numel


@dataclass(frozen=True, slots=True)
class Bucket:
    """A run of the flat buffer that one collective moves; its length divides by the number of shards.

    Attributes:
        start, stop: elements of the flat buffer.
        padding: elements in it that belong to no parameter.
        first, last: indices of its slots, ``first <= i < last``.
        unit: the unit its parameters belong to.
    """

    start: int
    stop: int
    padding: int
    first: int = 0
    last: int = 0
    unit: int = 0

    @property
    def numel(self) -> int:
        """Elements, padding included."""
        return self.stop - self.start

    @property
    def whole(self) -> Range:
        """All of it."""
        return Range(self.start, self.stop)

    def shard(self, index: int, shards: int) -> Range:
        """The part of this bucket that shard `index` of `shards` owns."""
        size = (self.stop - self.start) // shards
        return Range(self.start + index * size, self.start + (index + 1) * size)


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """The plan: slots in order, buckets in order, and the number of shards each bucket divides into."""

    slots: tuple[Slot, ...]
    buckets: tuple[Bucket, ...]
    shards: int

    @property
    def numel(self) -> int:
        """Elements of the flat buffer, padding included."""
        return self.buckets[-1].stop if self.buckets else 0

    @property
    def padding(self) -> int:
        """Elements of the flat buffer that belong to no parameter."""
        return sum(bucket.padding for bucket in self.buckets)

    def shard_ranges(self, index: int) -> tuple[Range, ...]:
        """The ranges shard `index` owns, one per bucket, in order."""
        return tuple(bucket.shard(index, self.shards) for bucket in self.buckets)

    def whole(self) -> tuple[Range, ...]:
        """The whole buffer, one range per bucket."""
        return tuple(bucket.whole for bucket in self.buckets)

    def bucket_at(self, start: int) -> int:
        """Index of the bucket that holds element `start`."""
        return bisect.bisect_right(self.buckets, start, key=lambda bucket: bucket.start) - 1

    def fragments(self, ranges: Iterable[Range]) -> Iterator[tuple[int, Range]]:
        """Yields (slot index, range in flat coordinates) for every non-empty meeting of a slot and a range."""
        for part in ranges:
            # Slots of an earlier bucket, or empty ones, end before the part does and are passed over.
            first = bisect.bisect_right(self.slots, part.start, key=lambda slot: slot.stop)
            for index in range(first, len(self.slots)):
                slot = self.slots[index]
                if slot.start >= part.stop:
                    break
                meeting = intersect(part, slot.start, slot.stop)
                if meeting is not None:
                    yield index, meeting


def intersect(part: Range, start: int, stop: int) -> Range | None:
    """The elements `part` shares with ``start <= i < stop``, or None."""
    low, high = max(part.start, start), min(part.stop, stop)
    return Range(low, high) if low < high else None


def plan_layout(
    parameters: Sequence[tuple[str, Sequence[int]]],
    *,
    shards: int = 1,
    bucket_numel: int = 500_000_000,
    alignment_numel: int = ALIGNMENT_NUMEL,
    units: Sequence[int] | None = None,
) -> FlatLayout:
    """Lays `parameters` out in order.

    Args:
        parameters: (name, shape) in the order they lie in the buffer.
        shards: ranks each bucket divides over.
        bucket_numel: elements after which a bucket is closed.
        alignment_numel: every parameter, and every shard of a bucket, starts at a multiple of this many elements.
        units: the unit of each parameter; a bucket is closed where it changes. None: all of one unit.

    Returns:
        A layout whose buckets cover it without holes; padding only between parameters and at the end of a bucket.

    Raises:
        ConfigError: `shards`, `bucket_numel` or `alignment_numel` is below one.
    """
    for name, value in (("shards", shards), ("reduce_bucket_size", bucket_numel), ("alignment", alignment_numel)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    chunk = shards * alignment_numel
    slots: list[Slot] = []
    buckets: list[Bucket] = []
    start = cursor = held = first = 0
    unit = units[0] if units else 0

    def close() -> None:
        nonlocal start, cursor, held, first
        stop = start + math.ceil((cursor - start) / chunk) * chunk
        if stop > start:
            buckets.append(Bucket(start, stop, stop - start - held, first, len(slots), unit))
            first = len(slots)
        start = cursor = stop
        held = 0

    for index, (name, shape) in enumerate(parameters):
        numel = math.prod(shape)
        cursor = math.ceil(cursor / alignment_numel) * alignment_numel
        if units is not None and units[index] != unit:
            close()
            unit = units[index]
        elif cursor > start and cursor + numel - start > bucket_numel:
            close()
        slots.append(Slot(name, tuple(shape), cursor))
        cursor += numel
        held += numel
    close()
    return FlatLayout(tuple(slots), tuple(buckets), shards)
