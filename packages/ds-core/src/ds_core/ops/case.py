"""Conformance cases as data: which tensors and scalars an op is called with, and how near the outputs must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Exactness", "Fill", "Layout", "OpCase", "TensorSpec"]


class Fill(Enum):
    """Values of an input."""

    NORMAL = "normal"  # standard normal times scale
    SQUARES = "squares"  # squares of such values, as a second moment has
    WIDE = "wide"  # normal values with exponents spread over twelve decades, signs mixed
    ZEROS = "zeros"
    SPECIAL = "special"  # normal with some infinities, NaNs and zeros of both signs
    BYTES = "bytes"  # whole numbers in [0, 255]
    CODES = "codes"  # whole numbers in [0, scale), with the uppermost bit of a byte set in half of them
    INTEGERS = "integers"  # whole numbers in [-127, 127]
    INDICES = "indices"  # whole numbers in [0, scale), some of them more than once
    RISING = "rising"  # different whole numbers in [0, scale), sorted along the last dimension
    HOLES = "holes"  # as INDICES, but every seventh is -1
    TARGETS = "targets"  # as INDICES, but every fifth is -100


class Layout(Enum):
    """Strides of an input."""

    CONTIGUOUS = "contiguous"
    TRANSPOSED = "transposed"  # the last two dimensions swapped in memory
    STRIDED = "strided"  # every second element of a larger tensor
    OFFSET = "offset"  # contiguous, but starting one element into its storage, so unaligned


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input tensor. `dtype` is the name of a torch dtype; `scale` multiplies the values.

    `values` are the elements themselves, in place of `fill` and `scale`: for tables and offsets that belong together.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    fill: Fill = Fill.NORMAL
    scale: float = 1.0
    layout: Layout = Layout.CONTIGUOUS
    values: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Exactness:
    """How far outputs (and arguments that the op changes) may be from the reference.

    Args:
        ulps: units in the last place of each output's dtype; 0 is bit-equal. NaNs count as equal.
        relative: allowed difference relative to the largest finite magnitude of the output; either bound suffices.
    """

    ulps: int = 0
    relative: float = 0.0


@dataclass(frozen=True, slots=True)
class OpCase:
    """One call of an op.

    Args:
        name: unique among the cases of the op.
        tensors: by argument name; None is an optional tensor left out. In the order of the schema.
        scalars: the other arguments by name; a dtype is given as its name under ``dtype``.
        exactness: bound for native implementations.
        levels: bound between native implementations for several instruction sets; looser than bit-equal only where
            hardware adds up in an order of its own.
    """

    name: str
    tensors: Mapping[str, TensorSpec | None]
    scalars: Mapping[str, object] = field(default_factory=dict)
    exactness: Exactness = Exactness()
    levels: Exactness = Exactness()
