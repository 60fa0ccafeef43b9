"""Where the elements of a logical tensor lie in files: boxes of it, each a run of a stored tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

__all__ = ["Elements", "Piece", "flat_piece"]

BLOCK_NUMEL = 1 << 22
"""Elements that are buffered at a time where rows of a box are dealt to their places."""


class Elements(Protocol):
    """Elements in a file, in row-major order."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def numel(self) -> int:
        """How many there are."""

    def read(self, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements from `start` on, cast to its dtype."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a logical tensor.

    Attributes:
        frame: shape in which the box is meant; its row-major order is the logical tensor's.
        offset: first index of the box, by dimension.
        size: extent of the box, by dimension.
        tensor: holds the elements of the box in row-major order.
        at: element of `tensor` that is the first of the box.
    """

    frame: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    tensor: Elements
    at: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.size)

    @property
    def fits(self) -> bool:
        """Whether the box lies in its frame, and its elements in their tensor."""
        inside = all(
            first >= 0 and size >= 0 and first + size <= whole
            for first, size, whole in zip(self.offset, self.size, self.frame, strict=True)
        )
        return inside and self.at >= 0 and self.at + self.numel <= self.tensor.numel

    def read(self, out: torch.Tensor, start: int) -> int:
        """Fills what of the flat range that begins at `start` lies in this box; how many elements that is."""
        if not self.numel:
            return 0
        rows = _Rows.of(self)
        found = 0
        for plane, first in rows.planes():
            found += self._read_plane(out, start, rows, plane, first)
        return found

    def _read_plane(self, out: torch.Tensor, start: int, rows: _Rows, plane: int, first: int) -> int:
        """One plane: `rows.count` runs of `rows.length` elements, `rows.step` apart, the first at `first`."""
        stop = start + out.numel()
        low = max(0, -(-(start - first - rows.length + 1) // rows.step))
        high = min(rows.count, -(-(stop - first) // rows.step))
        found, row = 0, low
        while row < high:
            place = first + row * rows.step
            source = self.at + (plane * rows.count + row) * rows.length
            whole = (stop - first - rows.length) // rows.step + 1 if place >= start else 0
            count = min(high, whole, row + max(BLOCK_NUMEL // rows.length, 1)) - row
            if count > 1:
                values = torch.empty(count * rows.length, dtype=out.dtype, device=out.device)
                self.tensor.read(values, source)
                target = out.as_strided((count, rows.length), (rows.step, 1), out.storage_offset() + place - start)
                target.copy_(values.view(count, rows.length))
                found += values.numel()
                row += count
                continue
            begin, end = max(start, place), min(stop, place + rows.length)
            self.tensor.read(out[begin - start : end - start], source + begin - place)
            found += end - begin
            row += 1
        return found


def flat_piece(numel: int, start: int, count: int, tensor: Elements, at: int = 0) -> Piece:
    """Elements ``start <= i < start + count`` of a logical tensor of `numel` elements."""
    return Piece((numel,), (start,), (count,), tensor, at)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A box as runs that are contiguous in its frame: planes of `count` runs of `length` elements, `step` apart."""

    length: int
    count: int
    step: int
    outer: tuple[tuple[int, int, int], ...]
    """First index, extent and stride of the dimensions that lie outside of a plane."""
    first: int

    @classmethod
    def of(cls, piece: Piece) -> _Rows:
        strides = [math.prod(piece.frame[dim + 1 :]) for dim in range(len(piece.frame))]
        inner = len(piece.frame)  # dimensions from here on are covered whole
        while inner > 0 and piece.size[inner - 1] == piece.frame[inner - 1]:
            inner -= 1
        cut = max(inner - 1, 0)  # the runs extend over this dimension's range and all after it
        length = math.prod(piece.size[cut:])
        first = sum(offset * stride for offset, stride in zip(piece.offset[cut:], strides[cut:], strict=True))
        if cut == 0:
            return cls(length, 1, max(length, 1), (), first)
        dim = cut - 1
        first += piece.offset[dim] * strides[dim]
        outer = zip(piece.offset[:dim], piece.size[:dim], strides[:dim], strict=True)
        return cls(length, piece.size[dim], strides[dim], tuple(outer), first)

    def planes(self) -> Sequence[tuple[int, int]]:
        """Number and first flat element of each plane."""
        indices = itertools.product(*(range(offset, offset + size) for offset, size, _ in self.outer))
        strides = [stride for _, _, stride in self.outer]
        return [
            (plane, self.first + sum(i * stride for i, stride in zip(index, strides, strict=True)))
            for plane, index in enumerate(indices)
        ]
