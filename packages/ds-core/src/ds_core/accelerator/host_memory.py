"""Host memory: keeps glibc's heap from holding on to what large tensors leave behind.

Note [Large tensors outside the heap]
    glibc raises the size from which memory is mapped on its own each time a mapped piece is freed, up to 32 MB; larger
    and larger tensors then come from the heap, which keeps the gaps they leave. In training, where activations,
    gradients and gathered parameters of many sizes come and go, these gaps were half of the resident memory. Setting
    the size stops it from moving. It is set once for the process, when the first engine is built on the host, and left
    alone where the user set it.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["MMAP_THRESHOLD_BYTES", "SWITCH", "settle_heap"]

MMAP_THRESHOLD_BYTES = 4 << 20
TRIM_THRESHOLD_BYTES = 64 << 20
SWITCH = "DS_HOST_MALLOC"
"""Set to ``default`` it leaves the allocator as it is."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def settle_heap() -> bool:
    """Fixes the size from which memory is mapped; False where this is not glibc, or the user has set it."""
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH, "") == "default":
        return False
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    done = mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    return bool(done)
