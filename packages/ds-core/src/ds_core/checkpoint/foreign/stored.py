"""`StoredTensor`: a tensor in a file, as dtype, shape, strides and place; any range of it is read when asked for."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ds_core.checkpoint.foreign.window import Window
from ds_core.errors import CheckpointError

__all__ = ["Storage", "StoredTensor"]

CHUNK_BYTES = 16 << 20
"""Largest buffer that a conversion of dtype takes."""
MAX_DIMS = 64


@dataclass(frozen=True, slots=True)
class Storage:
    """`numel` elements of `dtype`, whose bytes are in `window`."""

    window: Window
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A strided view of a storage in a file.

    Attributes:
        storage: the elements.
        offset: element of the storage that is the first of the tensor.
        shape: sizes.
        stride: elements of the storage between neighbors, by dimension.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, storage: Storage, offset: int, shape: Sequence[int], stride: Sequence[int]) -> StoredTensor:
        """The view, checked.

        Raises:
            ValueError: the view leaves its storage, or repeats it to more elements than it has.
        """
        if len(shape) != len(stride) or len(shape) > MAX_DIMS:
            raise ValueError(f"{len(shape)} sizes and {len(stride)} strides")
        if offset < 0 or min((*shape, *stride), default=0) < 0:
            raise ValueError(f"offset {offset}, shape {tuple(shape)}, stride {tuple(stride)}: one is negative")
        numel = math.prod(shape)
        end = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1 if numel else offset
        if end > storage.numel or numel > storage.numel:
            raise ValueError(
                f"shape {tuple(shape)}, stride {tuple(stride)} and offset {offset} go beyond a storage of "
                f"{storage.numel} elements"
            )
        return cls(storage, offset, tuple(shape), tuple(stride))

    @property
    def path(self) -> Path:
        """The file."""
        return self.storage.window.path

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""
        return self.storage.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    def read(self, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements ``start <= i < start + out.numel()`` in row-major order, cast to its dtype.

        Raises:
            CheckpointError: the range is not in the tensor, or the file ends before it.
        """
        if not 0 <= start <= start + out.numel() <= self.numel:
            raise CheckpointError(
                f"elements {start} to {start + out.numel()} of a tensor of {self.numel} in {self.storage.window.path} "
                "were asked for"
            )
        if not out.numel():
            return
        if self.is_contiguous:
            self._read_run(out, self.offset + start)
        else:
            _copy(self._mapped(), out, start)

    def full(self) -> torch.Tensor:
        """All of it, in its dtype and shape."""
        out = torch.empty(self.numel, dtype=self.dtype)
        self.read(out)
        return out.view(self.shape)

    def _read_run(self, out: torch.Tensor, first: int) -> None:
        width = self.dtype.itemsize
        if out.dtype == self.dtype and out.device.type == "cpu" and out.is_contiguous():
            self.storage.window.read_into(memoryview(out.view(torch.uint8).numpy().data), first * width)
            return
        step = max(CHUNK_BYTES // width, 1)
        for begin in range(0, out.numel(), step):
            part = out[begin : begin + step]
            values = torch.empty(part.numel(), dtype=self.dtype)
            self.storage.window.read_into(memoryview(values.view(torch.uint8).numpy().data), (first + begin) * width)
            part.copy_(values)

    def _mapped(self) -> torch.Tensor:
        window = self.storage.window
        slack = window.start % mmap.ALLOCATIONGRANULARITY
        with window.path.open("rb") as file:
            # Private and writable, as torch wants memory it may write to; nothing is ever written.
            area = mmap.mmap(file.fileno(), window.size + slack, access=mmap.ACCESS_COPY, offset=window.start - slack)
        flat = torch.frombuffer(area, dtype=self.dtype, count=self.storage.numel, offset=slack)
        return flat.as_strided(self.shape, self.stride, self.offset)


def _copy(view: torch.Tensor, out: torch.Tensor, start: int) -> None:
    """Copies a flat range of a strided tensor, whole rows at a time and the ends by themselves."""
    stop = start + out.numel()
    if view.dim() <= 1:
        out.copy_(view.reshape(-1)[start:stop])
        return
    inner = view[0].numel()
    first, last = -(-start // inner), stop // inner
    if first > last:  # the range lies inside of one row
        _copy(view[last], out, start - last * inner)
        return
    head, body = first * inner - start, (last - first) * inner
    if head:
        _copy(view[first - 1], out[:head], start - (first - 1) * inner)
    if body:
        out[head : head + body].view(last - first, *view.shape[1:]).copy_(view[first:last])
    if out.numel() > head + body:
        _copy(view[last], out[head + body :], 0)
