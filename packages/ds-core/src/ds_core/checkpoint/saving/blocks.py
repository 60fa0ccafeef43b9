"""Blocks: host memory through which the bytes of a file go, from the thread that trains to the thread that writes.

`BlockSink.write` copies into blocks and returns; `BlockSink.blocks` hands full blocks to the writer in order. As long
as the pool has blocks left nothing is written while the copy goes on, so that training is held up by the copy alone.
When the pool is at its limit the writer begins, and the copy goes on as fast as blocks come back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import NamedTuple

import torch

from ds_core.accelerator.host_memory import empty_on_large_pages
from ds_core.checkpoint.storage.manifest import BLOCK_BYTES

__all__ = ["Block", "BlockPool", "BlockSink", "SinkClosedError"]


class Block(NamedTuple):
    """Memory of `BLOCK_BYTES`, uint8, of which the first `used_bytes` are part of the file."""

    memory: torch.Tensor
    used_bytes: int


class SinkClosedError(RuntimeError):
    """The other side has given up; what it said when it did is its own to report."""


def _memory() -> torch.Tensor:
    return empty_on_large_pages(BLOCK_BYTES, torch.uint8)


class BlockPool:
    """Blocks that are used again, made when first needed.

    Args:
        limit: blocks that may exist at once; the peak is ``limit * BLOCK_BYTES`` bytes.
        make: memory of `BLOCK_BYTES`, which begins at a page; page-locked where a device copies into it.
    """

    def __init__(self, limit: int, make: Callable[[], torch.Tensor] = _memory) -> None:
        self.limit: int = max(1, limit)
        self.made: int = 0
        self._make: Callable[[], torch.Tensor] = make
        self._free: list[torch.Tensor] = []

    def take(self) -> torch.Tensor | None:
        """A block, or None when all are in use and no more may be made."""
        if self._free:
            return self._free.pop()
        if self.made == self.limit:
            return None
        self.made += 1
        return self._make()

    def give(self, memory: torch.Tensor) -> None:
        """Takes a block back."""
        self._free.append(memory)

    def clear(self) -> None:
        """Gives the memory of blocks that are not in use back to the system."""
        self.made -= len(self._free)
        self._free.clear()


class BlockSink:
    """A queue of blocks, filled by one thread and emptied by another."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool: BlockPool = pool
        self._ready: deque[Block] = deque()
        self._current: torch.Tensor | None = None
        self._used: int = 0
        self._waits: bool = False
        """The filling side needs a block back."""
        self._is_closed: bool = False
        self._is_aborted: bool = False
        self._change: threading.Condition = threading.Condition()

    def write(self, values: torch.Tensor) -> None:
        """Appends the bytes of a contiguous 1-D tensor on any device.

        Raises:
            SinkClosedError: the writer gave up.
        """
        data = values.view(torch.uint8) if values.numel() else values.new_empty(0, dtype=torch.uint8)
        done = 0
        while done < data.numel():
            current = self._current
            if current is None:
                current = self._current = self._take()
                self._used = 0
            count = min(data.numel() - done, BLOCK_BYTES - self._used)
            current[self._used : self._used + count].copy_(data[done : done + count])
            done += count
            self._used += count
            if self._used == BLOCK_BYTES:
                self._pass_on()

    def _take(self) -> torch.Tensor:
        with self._change:
            while True:
                if self._is_aborted:
                    raise SinkClosedError
                memory = self._pool.take()
                if memory is not None:
                    self._waits = False
                    return memory
                self._waits = True
                self._change.notify_all()
                self._change.wait()

    def _pass_on(self) -> None:
        with self._change:
            if self._current is None:  # the writer gave up meanwhile
                raise SinkClosedError
            self._ready.append(Block(self._current, self._used))
            self._current = None
            self._change.notify_all()

    def close(self) -> None:
        """Nothing more comes; the writer gets the last block."""
        if self._current is not None:
            self._pass_on()
        with self._change:
            self._is_closed = True
            self._change.notify_all()

    def abort(self) -> None:
        """Gives up, from either side; blocks that were not written go back to the pool."""
        with self._change:
            self._is_aborted = True
            while self._ready:
                self._pool.give(self._ready.popleft().memory)
            if self._current is not None:
                self._pool.give(self._current)
                self._current = None
            self._change.notify_all()

    def blocks(self) -> Generator[Block, None, None]:
        """The blocks in order, once all are there or the pool has no more; each goes back when the next is asked for.

        Raises:
            SinkClosedError: the filling side gave up.
        """
        while True:
            with self._change:
                while not self._is_aborted and not self._is_closed and not (self._waits and self._ready):
                    self._change.wait()
                if self._is_aborted:
                    raise SinkClosedError
                if not self._ready:
                    return
                block = self._ready.popleft()
            try:
                yield block
            finally:
                with self._change:
                    self._pool.give(block.memory)
                    self._change.notify_all()
