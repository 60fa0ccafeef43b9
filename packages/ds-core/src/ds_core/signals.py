"""Signals that a program wants to hear of between steps: a handler that only remembers, and goes when it is told to.

Python runs handlers in the main thread, between two of its instructions: a signal that arrives in the middle of a
matrix product or a collective is noted when that call returns.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

from ds_core.errors import ConfigError, EngineError, did_you_mean

__all__ = ["SignalWatch", "ignore_watched_signals", "parse_signals"]


class SignalWatch:
    """Remembers signals from now on until `close`, instead of what they would have done.

    A handler that was there before is called too, after the signal is remembered, but for Python's own that turns
    SIGINT into `KeyboardInterrupt`.

    Raises:
        EngineError: this is not the main thread, where alone Python lets a program handle signals.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            raise EngineError(
                f"signals can be handled in the main thread only, and this is {thread.name!r}: build the engine and "
                "call save_on_signal there, or set checkpoint.on_signal.folder to null"
            )
        self._received: list[signal.Signals] = []
        self._is_open: bool = True
        self._before: dict[int, Any] = {}
        for number in numbers:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._note)

    def take(self) -> list[signal.Signals]:
        """What arrived since the last call, in order. A signal that arrives meanwhile is kept for the next."""
        taken = self._received[:]
        del self._received[: len(taken)]
        return taken

    def close(self) -> None:
        """Puts the handlers back that were there before; where that cannot be, the handler hands on and does no more.

        It cannot be in another thread, and must not be where somebody else has taken the signal since.
        """
        self._is_open = False
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if signal.getsignal(number) == self._note and before is not None:
                    signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        if self._is_open:
            self._received.append(signal.Signals(number))
        elif before in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if callable(before) and not (self._is_open and before is signal.default_int_handler):
            before(number, frame)


def ignore_watched_signals(_worker: int = 0) -> None:
    """Makes a data-loading process deaf to the signals its parent watches; fits ``DataLoader(worker_init_fn=...)``.

    Schedulers signal every process of a job. Workers that end would make the parent fail before it has saved; these
    end with their parent, as ever.
    """
    for number in signal.valid_signals():
        if isinstance(getattr(signal.getsignal(number), "__self__", None), SignalWatch):
            signal.signal(number, signal.SIG_IGN)


def parse_signals(
    stop: Iterable[str | int], go_on: Iterable[str | int], prefix: str = ""
) -> tuple[frozenset[signal.Signals], frozenset[signal.Signals]]:
    """The signals that stop and those that do not, from names with or without SIG or from numbers.

    Raises:
        ConfigError: no such signal here, one that no program can handle, or one in both; `prefix` is for the message.
    """
    stops, goes_on = (_parse(f"{prefix}{name}", given) for name, given in (("stop", stop), ("go_on", go_on)))
    both = sorted(number.name for number in stops & goes_on)
    if both:
        raise ConfigError(f"{both[0]} is in {prefix}stop and in {prefix}go_on; a signal does one or the other")
    return stops, goes_on


def _parse(what: str, names: Iterable[str | int]) -> frozenset[signal.Signals]:
    known = {number.name: number for number in signal.Signals if number.name not in ("SIGKILL", "SIGSTOP")}
    found = set()
    for given in names:
        name = given.upper() if isinstance(given, str) else next((n for n, s in known.items() if s == given), "")
        name = name if name in known else f"SIG{name}"
        if name not in known:
            raise ConfigError(
                f"{what} has {given!r}, which is no signal that can be handled here; allowed are "
                f"{', '.join(sorted(known))}.{did_you_mean(str(given).upper(), known)}"
            )
        found.add(known[name])
    return frozenset(found)
