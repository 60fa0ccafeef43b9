"""Writes a data file while it is read: a few blocks of memory, whatever the size of the file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.distributed.checkpoint.planner import SavePlanner

from ds_core.checkpoint.saving.blocks import BlockPool, BlockSink, SinkClosedError
from ds_core.checkpoint.saving.share import Share, fill, persist
from ds_core.checkpoint.storage.disk import Disk

__all__ = ["STREAMING_BLOCKS", "stream"]

STREAMING_BLOCKS = 4


def stream(path: Path, share: Share, planner: SavePlanner, disk: Disk) -> list[str]:
    """Writes the data file of a plan durably; the hashes of its blocks.

    This thread resolves and copies, another hashes and writes; `STREAMING_BLOCKS` blocks go between them.

    Raises:
        OSError: the file cannot be written.
    """
    sink = BlockSink(BlockPool(STREAMING_BLOCKS))

    def write() -> list[str]:
        try:
            return persist(path, sink.blocks(), share, disk)
        finally:
            sink.abort()  # a copy that waits for a block must not wait for ever

    with ThreadPoolExecutor(1, thread_name_prefix="ds-checkpoint-stream") as pool:
        writer = pool.submit(write)
        try:
            fill(sink, share, planner)
        except SinkClosedError:
            pass  # the writer failed, and says why
        except BaseException:
            sink.abort()
            raise
        return writer.result()
