"""Host memory: a heap that gives back what large tensors leave behind, and large pages for large buffers.

Note [Large tensors outside the heap]
    glibc raises the size from which memory is mapped on its own each time a mapped piece is freed, up to 32 MB; larger
    and larger tensors then come from the heap, which keeps the gaps they leave. In training, where activations,
    gradients and gathered parameters of many sizes come and go, these gaps were half of the resident memory. Setting
    the size stops it from moving. It is set once for the process, when the first engine is built on the host, and left
    alone where the user set it.

Note [Large pages]
    The kernel clears memory when a process first touches it, a page at a time; with pages of 4 KiB that took a
    twentieth of a training step for gradient buffers, which live from one backward to the next update only. Buffers of
    this package therefore begin at a large page and ask for such pages as far as they fill them, so that nothing more
    becomes resident. Where the system knows none, or its administrator switched them off, asking changes nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["MMAP_THRESHOLD_BYTES", "SWITCH", "empty_on_large_pages", "settle_heap", "trim_heap"]

MMAP_THRESHOLD_BYTES = 4 << 20
TRIM_THRESHOLD_BYTES = 64 << 20
SWITCH = "DS_HOST_MALLOC"
"""Set to ``default`` it leaves the allocator as it is."""

LARGE_PAGE_BYTES = 2 << 20

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def settle_heap() -> bool:
    """Fixes the size from which memory is mapped; False where this is not glibc, or the user has set it."""
    if not _may_change():
        return False
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    done = mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    return bool(done)


def trim_heap() -> bool:
    """Gives whole free pages of glibc's heap back; False where this is not glibc, or the user wants it left alone."""
    if not _may_change():
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


def empty_on_large_pages(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised 1-D host tensor to keep for a while; on large pages where that pays and the system can."""
    import torch

    nbytes = numel * dtype.itemsize
    if nbytes < MMAP_THRESHOLD_BYTES or not _may_change() or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(numel, dtype=dtype)
    memory = mmap.mmap(-1, nbytes + LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    offset = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % LARGE_PAGE_BYTES
    with contextlib.suppress(OSError):  # a kernel built without them refuses; it is an advice
        memory.madvise(mmap.MADV_HUGEPAGE, offset, nbytes // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES)
    return torch.frombuffer(memory, dtype=dtype, count=numel, offset=offset)


def _may_change() -> bool:
    """Whether this is a system whose allocator is known, and its user has not asked to leave it alone."""
    return sys.platform.startswith("linux") and os.environ.get(SWITCH, "") != "default"
