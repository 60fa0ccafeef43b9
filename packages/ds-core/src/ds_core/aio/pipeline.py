"""A double-buffered loop: one item is worked on while the next is read and the one before is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar

__all__ = ["Pending", "buffers_needed", "pipelined"]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Value_co = TypeVar("Value_co", covariant=True)


class Pending(Protocol[Value_co]):
    """Something under way; `wait` returns what comes of it, or raises."""

    def wait(self) -> Value_co:
        """Returns when it is done."""


def buffers_needed(*, read_ahead: bool, write_behind: bool) -> int:
    """Items that are in memory at once in `pipelined`."""
    return 1 + read_ahead + write_behind


def pipelined(
    items: Iterable[Item],
    load: Callable[[Item], Pending[Loaded]],
    work: Callable[[Item, Loaded], Result],
    store: Callable[[Item, Result], Pending[object]],
    *,
    read_ahead: bool,
    write_behind: bool,
) -> None:
    """Loads, works on and stores each item, in the items' order, and returns when all are stored.

    At most one load and one store are under way, and at most `buffers_needed` items in memory.

    Args:
        items: what to work on.
        load: begins to read an item; its `wait` gives what `work` takes.
        work: computes, in this thread.
        store: begins to write a result; its `wait` returns when its buffers are free.
        read_ahead: load item i + 1 while item i is worked on.
        write_behind: store item i - 1 while item i is worked on, and loaded.

    Raises:
        Exception: whatever a stage raised first. No stage is called afterwards, and what was under way has ended.
    """
    under_way: list[Pending[Any]] = []
    loading: Pending[Loaded] | None = None
    storing: Pending[object] | None = None
    try:
        for item, following in _with_next(items):
            loaded = _end(under_way, loading or _begin(under_way, load(item)))
            loading = _begin(under_way, load(following[0])) if read_ahead and following else None
            result = work(item, loaded)
            if storing is not None:
                _end(under_way, storing)
            storing = _begin(under_way, store(item, result))
            if not write_behind:
                _end(under_way, storing)
                storing = None
        if storing is not None:
            _end(under_way, storing)
    except BaseException:
        _settle(under_way)
        raise


def _with_next(items: Iterable[Item]) -> Iterator[tuple[Item, list[Item]]]:
    """Each item with the one after it, in a list that is empty at the end."""
    waiting = iter(items)
    following = list(islice(waiting, 1))
    while following:
        item = following[0]
        following = list(islice(waiting, 1))
        yield item, following


def _begin(under_way: list[Pending[Any]], pending: Pending[Value_co]) -> Pending[Value_co]:
    under_way.append(pending)
    return pending


def _end(under_way: list[Pending[Any]], pending: Pending[Value_co]) -> Value_co:
    try:
        value = pending.wait()
    except Exception:
        _forget(under_way, pending)
        raise
    _forget(under_way, pending)  # not in a finally: an interrupted wait has not ended, and is waited for again
    return value


def _forget(under_way: list[Pending[Any]], pending: Pending[Any]) -> None:
    under_way[:] = [other for other in under_way if other is not pending]


def _settle(under_way: list[Pending[Any]]) -> None:
    """Waits for the rest after a failure; what else fails is logged, the first failure is the one that is raised."""
    for pending in under_way:
        try:
            pending.wait()
        except Exception:
            logger.exception("another stage failed while the loop was being stopped")
