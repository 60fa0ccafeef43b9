"""Compares two checkpoints of any formats, a block at a time: tensors, values, counters and client state."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ds_core.checkpoint.source import Source
from ds_core.checkpoint.weights.source_weights import BLOCK_NUMEL

__all__ = ["Difference", "TensorDifference", "ValueDifference", "common_bytes", "compare"]

_ORDERED = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
"""Floating-point dtypes and the integers whose order is theirs, but for the sign."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """What differs in one tensor.

    Attributes:
        key: its name.
        left, right: dtype and shape on either side; None where it is missing.
        unequal: elements that differ; None where they cannot be compared.
        numel: elements.
        max_abs: largest absolute difference; nan where a NaN meets a number.
        max_ulp: largest number of floats of the dtype from one to the other; None but for floats of one dtype.
    """

    key: str
    left: str | None
    right: str | None
    unequal: int | None = None
    numel: int = 0
    max_abs: float | None = None
    max_ulp: int | None = None


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """A counter or JSON value that differs: where, and what either side has; `MISSING` for nothing."""

    place: str
    left: Any
    right: Any


MISSING = "(missing)"


@dataclass(slots=True)
class Difference:
    """Everything that differs; false when nothing does."""

    tensors: list[TensorDifference] = field(default_factory=list)
    values: list[ValueDifference] = field(default_factory=list)
    compared: int = 0
    """Tensors whose elements were compared."""

    def __bool__(self) -> bool:
        return bool(self.tensors or self.values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; infinite and undefined differences, for which JSON has no numbers, as text."""
        told = {**asdict(self), "equal": not self}
        for tensor in told["tensors"]:
            if tensor["max_abs"] is not None and not math.isfinite(tensor["max_abs"]):
                tensor["max_abs"] = str(tensor["max_abs"])
        return told


def compare(
    left: Source,
    right: Source,
    *,
    pattern: str | None = None,
    tolerance: float = 0.0,
    told: Callable[[int], Any] = lambda nbytes: None,
) -> Difference:
    """What differs between two checkpoints. Memory: two blocks of `BLOCK_NUMEL` elements, as they are and in float64.

    Args:
        left: one.
        right: the other.
        pattern: compare the tensors whose names match it (as file names do), and nothing else; None: everything.
        tolerance: absolute differences up to it count as equal. With 0 every bit counts, so that 0.0 is not -0.0.
        told: gets the bytes that were compared, block by block.

    Raises:
        CheckpointError: elements of either cannot be read.
    """
    found = Difference()
    known = [set(source.keys()) for source in (left, right)]
    for key in sorted(known[0] | known[1]):
        if not _matches(key, pattern):
            continue
        kinds = [_kind(source, key) if key in keys else None for source, keys in zip((left, right), known, strict=True)]
        if None in kinds or left.shape(key) != right.shape(key):
            found.tensors.append(TensorDifference(key, kinds[0], kinds[1]))
            continue
        found.compared += 1
        tally = _tally(left, right, key, tolerance, told)
        if tally.unequal or kinds[0] != kinds[1]:
            numel, is_float = math.prod(left.shape(key)), kinds[0] == kinds[1] and left.dtype(key) in _ORDERED
            max_ulp = tally.max_ulp if is_float else None
            found.tensors.append(
                TensorDifference(key, kinds[0], kinds[1], tally.unequal, numel, tally.max_abs, max_ulp)
            )
    if pattern is None:
        sides = [_values(source) for source in (left, right)]
        found.values = list(_differing("", sides[0], sides[1]))
    return found


def common_bytes(left: Source, right: Source, pattern: str | None = None) -> int:
    """What `compare` will tell of in all."""
    return sum(
        math.prod(left.shape(key)) * left.dtype(key).itemsize
        for key in set(left.keys()) & set(right.keys())
        if _matches(key, pattern) and left.shape(key) == right.shape(key)
    )


def _matches(key: str, pattern: str | None) -> bool:
    return pattern is None or fnmatch.fnmatchcase(key, pattern)


def _kind(source: Source, key: str) -> str:
    return f"{str(source.dtype(key)).removeprefix('torch.')} {list(source.shape(key))}"


def _tally(left: Source, right: Source, key: str, tolerance: float, told: Callable[[int], Any]) -> _Tally:
    """What differs in a tensor that both have in one shape."""
    numel = math.prod(left.shape(key))
    tally = _Tally(tolerance)
    buffers = [torch.empty(min(numel, BLOCK_NUMEL), dtype=source.dtype(key)) for source in (left, right)]
    for start in range(0, numel, BLOCK_NUMEL):
        blocks = [buffer[: min(BLOCK_NUMEL, numel - start)] for buffer in buffers]
        for source, block in zip((left, right), blocks, strict=True):
            source.read(key, block, start)
        tally.add(blocks[0], blocks[1])
        told(blocks[0].nbytes)
    return tally


class _Tally:
    """Differences of a tensor, block by block."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance: float = tolerance
        self.unequal: int = 0
        self.max_abs: float = 0.0
        self.max_ulp: int = 0

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Counts one pair of blocks."""
        same = left.dtype == right.dtype
        if same and torch.equal(left.view(torch.uint8), right.view(torch.uint8)):
            return
        apart = _bits_differ(left, right) if same else None
        if apart is not None:
            places = apart.nonzero().view(-1)
            left, right = left[places], right[places]
        gap = _gap(left, right)
        if self._tolerance > 0:
            counts = ~(gap <= self._tolerance)
        else:
            counts = torch.ones_like(gap, dtype=torch.bool) if same else (gap != 0)
        self.unequal += int(counts.sum())
        largest = float(gap.max()) if gap.numel() else 0.0  # torch's max of a NaN is NaN
        self.max_abs = largest if math.isnan(largest) or largest > self.max_abs else self.max_abs
        if same and left.dtype in _ORDERED and bool(counts.any()):
            self.max_ulp = max(self.max_ulp, _ulp(left[counts], right[counts]))


def _bits_differ(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    width = left.dtype.itemsize
    apart: torch.Tensor = (left.view(torch.uint8) != right.view(torch.uint8)).view(-1, width).any(dim=1)
    return apart


def _gap(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Absolute differences in float64: 0 between equal infinities and between NaNs, NaN between a NaN and a number."""
    wide = torch.complex128 if left.is_complex() or right.is_complex() else torch.float64
    wide_left, wide_right = left.to(wide), right.to(wide)
    is_same = (wide_left == wide_right) | (wide_left.isnan() & wide_right.isnan())
    gap = (wide_left - wide_right).abs()
    return torch.where(is_same, torch.zeros_like(gap), gap)


def _ulp(left: torch.Tensor, right: torch.Tensor) -> int:
    """Most floats one must pass from an element of one to that of the other; NaNs are passed over."""
    numbers = ~(left.isnan() | right.isnan())
    if not bool(numbers.any()):
        return 0
    places = [_ordered(side[numbers]) for side in (left, right)]
    if left.dtype == torch.float64:  # distances may exceed 64 bits
        pairs = zip(places[0].tolist(), places[1].tolist(), strict=True)
        return max((abs(int(a) - int(b)) for a, b in pairs), default=0)
    largest: int = int((places[0] - places[1]).abs().max())
    return largest


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats, one apart where the floats are neighbours."""
    integers = values.contiguous().view(_ORDERED[values.dtype]).to(torch.int64)
    lowest = -(1 << (8 * values.dtype.itemsize - 1))
    return torch.where(integers < 0, lowest - integers, integers)


def _values(source: Source) -> dict[str, Any]:
    names: Sequence[str] = ("optimizer", "optimizer_scalars", "lr_scheduler", "loss_scale", "data", "module")
    values = {name: source.value(name) for name in names if source.value(name) is not None}
    return {"counters": dict(source.counters), "client_state": source.client_state, "values": values}


def _differing(place: str, left: Any, right: Any) -> Iterator[ValueDifference]:
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}, key=str):
            below = f"{place}.{key}" if place else str(key)
            yield from _differing(below, left.get(key, MISSING), right.get(key, MISSING))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from _differing(f"{place}[{index}]", a, b)
    elif left != right and not (left != left and right != right):
        yield ValueDifference(place, left, right)
