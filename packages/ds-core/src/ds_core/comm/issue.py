"""Issue one collective: count it, measure it when asked to, and name it in every error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from ds_core.accelerator import in_use
from ds_core.comm.counter import current_scope
from ds_core.comm.failure import failure
from ds_core.comm.state import GroupFacts, comms_logger, counter

__all__ = ["DONE", "Done", "Handle", "Handles", "Measure", "Waitable", "alone", "issue", "joined", "nbytes"]


class Measure(NamedTuple):
    """DeepSpeed's three extra arguments of every collective: measure it, under which name, with the caller's name."""

    prof: bool = False
    log_name: str | None = None
    debug: bool | None = None


class Done:
    """The handle of a collective that had nothing to do."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        """True at once."""
        return True

    def is_completed(self) -> bool:
        """True."""
        return True


DONE = Done()


class Handle:
    """An asynchronous collective under way; `wait` raises `CommError` when it failed. `work` is torch's own handle."""

    __slots__ = ("_call", "_finish", "_op", "_scope", "_waited", "_where", "work")

    def __init__(self, work: Any, op: str, where: GroupFacts, finish: Callable[[], None] | None) -> None:
        self.work = work
        self._op = op
        self._scope = current_scope()
        self._where = where
        self._call = counter.sequence(where.name)
        self._finish = finish
        self._waited = False

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for the result (on a device with streams: make the current stream wait)."""
        try:
            done = self.work.wait() if timeout is None else self.work.wait(timeout)
        except RuntimeError as error:
            raise failure(self._op, self._where, error, call=self._call, scope=self._scope) from error
        self._waited = True
        if self._finish is not None:
            finish, self._finish = self._finish, None
            finish()
        return bool(done)

    def is_completed(self) -> bool:
        """Whether `wait` would return at once."""
        return self._waited or bool(self.work.is_completed())  # gloo's own answer may stay False after a wait

    def is_success(self) -> bool:
        """Whether it completed without an error."""
        return bool(self.work.is_success())

    def exception(self) -> Any:
        """The backend's error, or None."""
        return self.work.exception()

    def get_future(self) -> Any:
        """torch's future of the result."""
        return self.work.get_future()

    def source_rank(self) -> int:
        """The sender of a receive from any source."""
        return int(self.work.source_rank())


class Handles:
    """Several collectives waited for as one."""

    __slots__ = ("_handles",)

    def __init__(self, handles: Sequence[Handle | Handles | Done]) -> None:
        self._handles = handles

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for all."""
        done = True
        for handle in self._handles:
            done = handle.wait(timeout) and done
        return done

    def is_completed(self) -> bool:
        """Whether all are complete."""
        return all(handle.is_completed() for handle in self._handles)


def issue(
    op: str,
    where: GroupFacts,
    payload: int,
    sent: int,
    async_op: bool,
    measure: Measure,
    run: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Handle | None:
    """Count `op` and call ``run(*args, **kwargs)``; a handle when asynchronous.

    Raises:
        CommError: the call failed; the message has rank, op, group, scope and where the other ranks were.
    """
    counter.add(op, where.name, current_scope(), payload, sent)
    started = _start(op, measure) if comms_logger.settings.enabled else None
    try:
        work = run(*args, **kwargs)
    except (RuntimeError, ValueError) as error:
        raise failure(op, where, error) from error
    finish = None
    if started is not None:
        name = _log_name(op, measure)
        finish = _finisher(name, payload, sent, started)
    if async_op:
        return Handle(work, op, where, finish)
    if finish is not None:
        finish()
    return None


def _start(op: str, measure: Measure) -> float | None:
    if not comms_logger.wanted(op, measure.prof):
        return None
    _settle()
    return time.perf_counter()


def _finisher(name: str, payload: int, sent: int, started: float) -> Callable[[], None]:
    def finish() -> None:
        _settle()
        comms_logger.add(name, payload, sent, time.perf_counter() - started)

    return finish


def _settle() -> None:
    accelerator = in_use()
    if accelerator is not None:
        accelerator.synchronize()


def _log_name(op: str, measure: Measure) -> str:
    name = measure.log_name or op
    debug = comms_logger.settings.debug if measure.debug is None else measure.debug
    if debug:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ds_core.comm"):
            frame = frame.f_back
        name = f"{name} | {frame.f_code.co_name}"
    return name


def nbytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


Waitable = Handle | Handles | Done


def alone(op: str, where: GroupFacts, payload: int, async_op: bool) -> Done | None:
    """Count a collective of one rank, which moves nothing."""
    counter.add(op, where.name, current_scope(), payload, 0)
    return DONE if async_op else None


def joined(handles: Sequence[Waitable | None], async_op: bool) -> Waitable | None:
    """Several collectives under way as one: a handle when asynchronous, else wait for all."""
    under_way = Handles([handle for handle in handles if handle is not None])
    if async_op:
        return under_way
    under_way.wait()
    return None
