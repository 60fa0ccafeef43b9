"""Tensors in files: asynchronous reads and writes, a store for one rank's offloaded tensors, a double-buffered loop."""

from __future__ import annotations

from ds_core.aio.contract import ALIGNMENT, AsyncIO, Handle
from ds_core.aio.make import make_io
from ds_core.aio.memory import BufferPool, aligned_empty
from ds_core.aio.pipeline import Pending, buffers_needed, pipelined
from ds_core.aio.slots import Slot
from ds_core.aio.store import SwapStore
from ds_core.aio.threaded import ThreadedIO

__all__ = [
    "ALIGNMENT",
    "AsyncIO",
    "BufferPool",
    "Handle",
    "Pending",
    "Slot",
    "SwapStore",
    "ThreadedIO",
    "aligned_empty",
    "buffers_needed",
    "make_io",
    "pipelined",
]
