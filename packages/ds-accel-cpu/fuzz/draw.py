"""Random choices of a fuzzed call, all from one seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ds_core.ops.case import Fill, Layout, OpCase, TensorSpec

__all__ = ["DTYPES", "Draw", "Recipe"]

T = TypeVar("T")

DTYPES = ("float32", "bfloat16", "float16")
# Where loops change: around whole vectors, lanes, blocks (1024) and what is kept on the stack (8192).
_EDGES = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 8191, 8192, 8193)


@dataclass(slots=True)
class Draw:
    """A source of sizes, dtypes and layouts.

    Args:
        random: seeded by the caller; the same seed gives the same call.
    """

    random: random.Random

    def size(self, largest: int, smallest: int = 0) -> int:
        """Often just at an edge, sometimes 0 if that is allowed."""
        edges = [edge for edge in _EDGES if smallest <= edge <= largest]
        how = self.random.random()
        if how < 0.05:
            return smallest
        if how < 0.5 and edges:
            return self.random.choice(edges)
        return self.random.randint(smallest, min(largest, max(smallest, 200)) if how < 0.9 else largest)

    def pick(self, *values: T) -> T:
        """One of the values."""
        return self.random.choice(values)

    def chance(self, probability: float = 0.5) -> bool:
        """True with that probability."""
        return self.random.random() < probability

    def layout(self, dimensions: int) -> Layout:
        """Mostly exact buffers from their start; else one element into theirs, or strided."""
        layouts = [Layout.CONTIGUOUS, Layout.CONTIGUOUS, Layout.OFFSET, Layout.OFFSET]
        if dimensions > 0:
            layouts.append(Layout.STRIDED)
        if dimensions > 1:
            layouts.append(Layout.TRANSPOSED)
        return self.random.choice(layouts)

    def flat(self, shape: tuple[int, ...], dtype: str, fill: Fill = Fill.NORMAL, scale: float = 1.0) -> TensorSpec:
        """A dense tensor."""
        return TensorSpec(shape, dtype, fill, scale, self.pick(Layout.CONTIGUOUS, Layout.OFFSET))

    def tensor(self, shape: tuple[int, ...], dtype: str, fill: Fill | None = None, scale: float = 1.0) -> TensorSpec:
        """A tensor of any layout."""
        fill = fill or self.pick(Fill.NORMAL, Fill.NORMAL, Fill.WIDE, Fill.SPECIAL, Fill.ZEROS)
        return TensorSpec(shape, dtype, fill, scale, self.layout(len(shape)))

    def index(self, shape: tuple[int, ...], rows: int, fill: Fill = Fill.INDICES) -> TensorSpec:
        """Row numbers."""
        return TensorSpec(shape, "int64", fill, rows)

    def rows(self, elements: int, columns: int) -> int:
        """As many rows of that many columns as make up to `elements`."""
        return self.size(max(1, elements // max(columns, 1)))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Tensors and scalars of one call of an op, as in an `OpCase`."""

    tensors: Mapping[str, TensorSpec | None]
    scalars: Mapping[str, object] = field(default_factory=dict)

    def case(self, name: str) -> OpCase:
        """The call as a case."""
        return OpCase(name, self.tensors, self.scalars)
