"""Tensors in files: asynchronous reads and writes, a store for one rank's offloaded tensors, a double-buffered loop."""

from __future__ import annotations

from ds_core.aio.contract import ALIGNMENT, AsyncIO, Handle
from ds_core.aio.handle import AioHandle, aio_handle, aio_read, aio_write
from ds_core.aio.make import host_io, make_io
from ds_core.aio.memory import BufferPool, aligned_empty
from ds_core.aio.pipeline import Pending, buffers_needed, pipelined
from ds_core.aio.slots import Slot
from ds_core.aio.store import SwapStore
from ds_core.aio.threaded import ThreadedIO

__all__ = [
    "ALIGNMENT",
    "AioHandle",
    "AsyncIO",
    "BufferPool",
    "Handle",
    "Pending",
    "Slot",
    "SwapStore",
    "ThreadedIO",
    "aio_handle",
    "aio_read",
    "aio_write",
    "aligned_empty",
    "buffers_needed",
    "host_io",
    "make_io",
    "pipelined",
]
