"""Faults on purpose: ranks that die, fail at a step, or are late; and the check that every rank notices.

Functions here run inside a rank (see `ds_core.testing.run_ranks`), except `expect_error_on_all_ranks`.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Collection
from typing import Any

from ds_core.testing.ranks import RankError, RankFailure, run_ranks

__all__ = ["FaultError", "delay", "expect_error_on_all_ranks", "fail_at", "kill_rank"]


class FaultError(RuntimeError):
    """The error `fail_at` raises; nothing else does."""


def _this_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _chosen(rank: int | None) -> bool:
    return rank is None or rank == _this_rank()


def kill_rank(rank: int, number: int = signal.SIGKILL) -> None:
    """End this process with a signal, without any clean-up, if it is `rank`. Other ranks go on.

    A test that calls it passes ``dies=[rank]`` to `run_ranks`.
    """
    if _this_rank() == rank:
        os.kill(os.getpid(), number)
        time.sleep(60)  # a signal other than SIGKILL may take a moment to arrive


def fail_at(step: int, *, rank: int | None = None, message: str = "injected fault") -> Callable[[int], None]:
    """A function to call with each step's number; it raises `FaultError` at `step` on `rank` (None: on all)."""

    def check(current: int) -> None:
        if current == step and _chosen(rank):
            raise FaultError(f"{message} at step {step} on rank {_this_rank()}")

    return check


def delay(seconds: float, *, rank: int | None = None) -> None:
    """Be late by `seconds` on `rank` (None: on all)."""
    if _chosen(rank):
        time.sleep(seconds)


def expect_error_on_all_ranks(
    fn: Callable[..., Any],
    world: int,
    *args: Any,
    match: str | None = None,
    kind: type[BaseException] | None = None,
    except_ranks: Collection[int] = (),
    **kwargs: Any,
) -> dict[int, RankFailure]:
    """Run `fn` on `world` ranks and check that each one failed by raising; the failures by rank.

    Args:
        fn, world, args, kwargs: as for `run_ranks`.
        match: regular expression every message must contain.
        kind: class every exception must be of.
        except_ranks: ranks that may end in any way (the one that causes the fault).

    Raises:
        AssertionError: some rank returned, died, hung, or failed differently; it names each such rank.
    """
    try:
        run_ranks(fn, world, *args, **kwargs)
    except RankError as error:
        wrong = []
        for rank in range(world):
            if rank not in except_ranks:
                problem = _problem(error.failures.get(rank), match, kind)
                if problem:
                    wrong.append(f"rank {rank} {problem}")
        if wrong:
            raise AssertionError("; ".join(wrong) + f"\n{error}") from error
        return error.failures
    raise AssertionError(f"no rank of {world} failed")


def _problem(failure: RankFailure | None, match: str | None, kind: type[BaseException] | None) -> str:
    if failure is None:
        return "did not fail"
    if failure.exception is None:
        return f"ended otherwise: {failure.kind}"
    if kind is not None and not isinstance(failure.exception, kind):
        return f"raised {type(failure.exception).__name__}, not {kind.__name__}"
    if match is not None and re.search(match, failure.message) is None:
        return f"raised a message without {match!r}: {failure.message}"
    return ""
