"""Runs a step on every rank and lets all of them fail together, naming who failed and why."""

from __future__ import annotations

from collections.abc import Callable

from ds_core import comm
from ds_core.errors import CheckpointError

__all__ = ["FAILURES", "together"]

FAILURES = (OSError, RuntimeError, ValueError, MemoryError)
"""What writing or reading may fail with on one rank and all must hear of; CheckpointError is a RuntimeError."""


def together(what: str, where: object, action: Callable[[], object]) -> None:
    """Calls `action`; when it fails on any rank, raises on all. Called on all ranks.

    Args:
        what: the step, as in "rank 1 could not <what>".
        where: the checkpoint, for the message.
        action: may raise any of `FAILURES`.

    Raises:
        CheckpointError: with the ranks that failed and the reason of the first.
    """
    failure: Exception | None = None
    try:
        action()
    except FAILURES as error:
        failure = error
    with comm.scope("checkpoint"):
        reasons = comm.gather_json(None if failure is None else str(failure))
    failed = [rank for rank, reason in enumerate(reasons) if reason is not None]
    if failed:
        ranks = ", ".join(map(str, failed))
        raise CheckpointError(f"{where}: rank {ranks} could not {what}: {reasons[failed[0]]}") from failure
