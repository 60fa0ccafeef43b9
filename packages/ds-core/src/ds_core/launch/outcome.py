"""What became of a job: which rank failed first, how, why as far as it said, and where to read on."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ds_core.errors import LaunchError

__all__ = [
    "RankFailure",
    "RanksFailedError",
    "explain_exit",
    "first_failure",
    "read_failures",
    "was_preempted",
    "write_failures",
]

_SIGNAL_HINTS = {
    signal.SIGKILL: "killed from outside, usually because the machine ran out of memory: see `dmesg`, lower the batch "
    "size or offload",
    signal.SIGSEGV: "a crash in native code: run once with PYTHONFAULTHANDLER=1 to see where",
    signal.SIGBUS: "usually shared memory that is full: see `df /dev/shm`",
    signal.SIGABRT: "native code gave up: its message is on stderr, above",
    signal.SIGILL: "native code built for another processor",
    signal.SIGFPE: "a division by zero in native code",
    signal.SIGTERM: "asked to end from outside",
    signal.SIGINT: "interrupted",
}


@dataclass(frozen=True, slots=True)
class RankFailure:
    """How one rank ended. A negative exit code is the number of the signal that ended it."""

    rank: int
    local_rank: int
    exit_code: int
    pid: int
    error: str
    traceback: str
    time_s: float
    log: str


class RanksFailedError(LaunchError):
    """A rank failed. `exit_code` is what the launcher should exit with: the rank's own, or 128 + the signal."""

    def __init__(self, message: str, exit_code: int, failures: tuple[RankFailure, ...] = ()) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.failures = failures

    @classmethod
    def of(cls, failures: tuple[RankFailure, ...], world: int, hint: str) -> RanksFailedError:
        """The error for ranks that failed, told by the one that failed first."""
        first = first_failure(failures)
        lines = [f"rank {first.rank} of {world} {explain_exit(first.exit_code)} (pid {first.pid})"]
        if first.error:
            lines.append(f"  error: {first.error}")
        own = [failure.rank for failure in failures if failure is not first and failure.error]
        if own:
            lines.append(f"  ranks that failed after it: {', '.join(str(rank) for rank in sorted(own))}")
        others = world - 1 - len(own)
        if others:
            lines.append(f"  the other {others} rank{'s were' if others > 1 else ' was'} stopped")
        lines.append(f"  log: {first.log}" if first.log else f"  log: {hint}")
        code = first.exit_code if first.exit_code >= 0 else 128 - first.exit_code
        return cls("\n".join(lines), code, failures)


def was_preempted(path: Path) -> bool:
    """Whether the word that a rank left in this file says that it saved and stopped, as it was asked to."""
    try:
        message = json.loads(path.read_text(encoding="utf-8"))["message"]
        return bool(message["extraInfo"]["preempted"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def first_failure(failures: tuple[RankFailure, ...]) -> RankFailure:
    """The rank that failed first; one the agent stopped with SIGTERM only when there is no other."""
    return min(failures, key=lambda failure: (failure.exit_code == -signal.SIGTERM, failure.time_s))


def explain_exit(code: int) -> str:
    """ "exited with code 3", or "was ended by signal 9 (SIGKILL), ..." with what that usually means."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        found = signal.Signals(-code)
    except ValueError:
        return f"was ended by signal {-code}"
    hint = _SIGNAL_HINTS.get(found)
    return f"was ended by signal {-code} ({found.name})" + (f": {hint}" if hint else "")


def write_failures(path: Path, failures: tuple[RankFailure, ...]) -> None:
    """Leave the failures for the launching process."""
    path.write_text(json.dumps([asdict(failure) for failure in failures]), encoding="utf-8")


def read_failures(path: Path) -> tuple[RankFailure, ...]:
    """What `write_failures` left; empty when there is nothing."""
    if not path.is_file():
        return ()
    rows: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return tuple(RankFailure(**row) for row in rows)
