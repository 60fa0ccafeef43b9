"""Host memory for file I/O: tensors on block boundaries, a pool with a known peak, and tensors seen as bytes."""

from __future__ import annotations

import ctypes
import threading

import torch

from ds_core.accelerator.host_memory import empty_on_large_pages
from ds_core.aio.contract import ALIGNMENT
from ds_core.errors import OffloadError

__all__ = ["BufferPool", "aligned_empty", "byte_view", "round_up", "with_padding"]


def round_up(nbytes: int) -> int:
    """The next multiple of the alignment, in bytes."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def aligned_empty(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized 1-D host tensor that starts on a block boundary, with its last block to itself.

    Large ones ask for large pages: the fewer pages a block lies in, the fewer requests a disk gets for it.
    """
    nbytes = numel * dtype.itemsize
    whole = empty_on_large_pages(round_up(nbytes) + ALIGNMENT, torch.uint8)
    start = -whole.data_ptr() % ALIGNMENT
    return whole[start : start + nbytes].view(dtype)


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous host tensor of any dtype, writable; it does not keep the tensor alive.

    Raises:
        OffloadError: the tensor is not dense and contiguous, or not in host memory.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
        strides = tuple(tensor.stride()) if tensor.layout == torch.strided else "none"
        raise OffloadError(
            f"a tensor read from or written to a file must be dense, contiguous and on cpu, got shape"
            f" {tuple(tensor.shape)}, layout {tensor.layout}, strides {strides}, on {tensor.device}; copy it to a"
            f" buffer of aligned_empty first"
        )
    nbytes = tensor.numel() * tensor.element_size()
    if not nbytes:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * nbytes).from_address(tensor.data_ptr())).cast("B")


def with_padding(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous host `tensor` as bytes, up to the end of its last block where its storage reaches that far.

    Meant to be written from, never read into: what follows may belong to another tensor.

    Raises:
        OffloadError: as `byte_view`.
    """
    nbytes = len(byte_view(tensor))
    storage = tensor.untyped_storage()
    start = tensor.storage_offset() * tensor.element_size()
    padded = round_up(nbytes)
    if tensor.data_ptr() % ALIGNMENT or start + padded > storage.nbytes():
        padded = nbytes
    return torch.empty(0, dtype=torch.uint8).set_(storage, start, (padded,), (1,))


class BufferPool:
    """A fixed set of equal host buffers on block boundaries. Safe to use from several threads."""

    def __init__(self, count: int, numel: int, dtype: torch.dtype, *, setting: str = "buffer_count") -> None:
        """Allocates them all, so that the peak is known from the start.

        Args:
            count: buffers.
            numel: elements of each.
            dtype: their dtype.
            setting: the config key that decides `count`, for messages.
        """
        self.count = count
        self.nbytes = count * round_up(numel * dtype.itemsize)
        self._setting = setting
        self.buffers = [aligned_empty(numel, dtype) for _ in range(count)]
        self._free = list(range(count))
        self._lock = threading.Lock()

    def acquire(self) -> torch.Tensor:
        """A buffer nobody holds, its contents as the last holder left them.

        Raises:
            OffloadError: all are held.
        """
        with self._lock:
            if not self._free:
                raise OffloadError(
                    f"all {self.count} buffers are in use; {self._setting} is {self.count} and must be at least"
                    f" {self.count + 1}: raise it"
                )
            return self.buffers[self._free.pop()]

    def release(self, buffer: torch.Tensor) -> None:
        """Takes back what `acquire` gave.

        Raises:
            OffloadError: it is not a buffer of this pool, or nobody held it.
        """
        index = next((i for i, own in enumerate(self.buffers) if own is buffer), None)
        with self._lock:
            if index is None or index in self._free:
                problem = "is not one of this pool's" if index is None else "was released before"
                raise OffloadError(f"a buffer {problem}; release what acquire returned, once")
            self._free.append(index)
