"""What a metric is and what a sink of metrics does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["Event", "FileSection", "Monitor", "folder"]

DEFAULT_OUTPUT_PATH = "runs"


class Event(NamedTuple):
    """One value of one metric.

    Args:
        name: slash-separated, for example ``"Train/Samples/train_loss"``.
        value: a number; NaN and infinities are allowed.
        step: x-axis; the engine's own events count global samples.
        wall_time: seconds since the epoch.
    """

    name: str
    value: float
    step: int
    wall_time: float


@runtime_checkable
class Monitor(Protocol):
    """A sink of metrics. It may raise: it is then disabled and training goes on."""

    def write(self, events: Sequence[Event]) -> None:
        """Takes the events, in order."""

    def flush(self) -> None:
        """Makes what was written readable to others."""

    def close(self) -> None:
        """Flushes and lets go of every resource; nothing is written afterwards."""


class FileSection(Protocol):
    """The config section of a sink that writes files."""

    @property
    def output_path(self) -> str: ...

    @property
    def job_name(self) -> str: ...


def folder(section: FileSection) -> Path:
    """``output_path/job_name``; an empty output path is ``runs`` below the working directory."""
    return Path(section.output_path or DEFAULT_OUTPUT_PATH) / section.job_name
