"""Run Python functions in the order of issue: at once when nothing is under way, else in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

__all__ = ["FuturePending", "Sequence"]


class FuturePending:
    """A function under way as `Pending`."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self, limit_s: float = -1.0) -> bool:
        """Waits; raises what the function raised."""
        try:
            self._future.result(None if limit_s < 0 else limit_s)
        except FutureTimeout:
            return self._future.done()
        return True

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._future.done()

    @property
    def error(self) -> str:
        """What went wrong; empty."""
        error = self._future.exception() if self._future.done() else None
        return "" if error is None else str(error)

    @property
    def source(self) -> int:
        """No message: -1."""
        return -1


class Sequence:
    """Functions of one group, one at a time."""

    def __init__(self) -> None:
        self._order = threading.Lock()
        self._running = threading.Lock()
        self._under_way: int = 0
        self._executor: ThreadPoolExecutor | None = None

    def issue(self, run: Callable[[], None], is_async: bool) -> FuturePending | None:
        """Runs it in the calling thread and returns None, or hands it to the thread and returns at once."""
        with self._order:
            is_free = not is_async and self._under_way == 0
            if not is_free:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(1, thread_name_prefix="ds-shm")
                self._under_way += 1
                pending = FuturePending(self._executor.submit(self._run, run))
            else:
                self._running.acquire()
        if not is_free:
            if is_async:
                return pending
            pending.wait()
            return None
        try:
            run()
        finally:
            self._running.release()
        return None

    def _run(self, run: Callable[[], None]) -> None:
        try:
            with self._running:
                run()
        finally:
            with self._order:
                self._under_way -= 1

    def close(self) -> None:
        """Starts nothing new; what is under way is not waited for."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
