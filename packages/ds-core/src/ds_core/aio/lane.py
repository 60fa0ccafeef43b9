"""`Lane`: threads that take pieces of work from one queue, a given number at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

import torch

from ds_core.aio.memory import aligned_empty

__all__ = ["Lane", "Scratch", "Work"]


class Scratch:
    """One thread's staging buffer, allocated when it is first needed."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._buffer: torch.Tensor | None = None

    def __call__(self) -> torch.Tensor:
        """The buffer, as bytes."""
        if self._buffer is None:
            self._buffer = aligned_empty(self._nbytes, torch.uint8)
        return self._buffer


Work = Callable[[Scratch], None]
"""One piece of work; reports its own failure, and raises nothing."""


class Lane:
    """Does work in the order it was given, up to `depth` at a time, each in a thread started when it is first needed.

    Args:
        depth: most pieces under way.
        overlap: start a piece as soon as one ends; else start up to `depth` when all that were started have ended.
        scratch_nbytes: size of each thread's staging buffer.
        name: of the threads.
    """

    def __init__(self, depth: int, *, overlap: bool, scratch_nbytes: int, name: str) -> None:
        self._depth = depth
        self._overlap = overlap
        self._scratch_nbytes = scratch_nbytes
        self._name = name
        self._queue: deque[Work] = deque()
        self._running = 0
        self._allowed = 0
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()

    def add(self, work: Iterable[Work]) -> None:
        """Queues pieces."""
        with self._changed:
            self._queue.extend(work)
            wanted = min(self._depth, self._running + len(self._queue))
            while len(self._threads) < wanted:
                # A daemon, so that a program that ends without close() ends.
                thread = threading.Thread(target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True)
                thread.start()
                self._threads.append(thread)
            self._changed.notify(wanted - self._running)

    def close(self) -> None:
        """Ends the threads once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():  # the last reference to an engine may be dropped in its thread
                thread.join()

    def _serve(self) -> None:
        scratch = Scratch(self._scratch_nbytes)
        while True:
            with self._changed:
                while not self._may_start():
                    if self._closed and not self._queue:
                        return
                    self._changed.wait()
                work = self._queue.popleft()
                self._running += 1
            work(scratch)
            del work  # it holds the tensor
            with self._changed:
                self._running -= 1
                if not self._overlap and self._running == 0:
                    self._changed.notify_all()

    def _may_start(self) -> bool:
        if not self._queue or self._overlap:
            return bool(self._queue)
        if self._running == 0 and self._allowed == 0:
            self._allowed = min(self._depth, len(self._queue))
        if self._allowed == 0:
            return False
        self._allowed -= 1
        return True
