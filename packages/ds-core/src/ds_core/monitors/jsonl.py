"""Metrics as lines of JSON: readable by anything, appended to on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ds_core.monitors.base import Event, FileSection, folder

__all__ = ["FILE_NAME", "JsonlMonitor", "read_events"]

FILE_NAME = "events.jsonl"


class JsonlMonitor:
    """Appends one JSON object per event to ``output_path/job_name/events.jsonl``.

    Keys are ``name``, ``value``, ``step`` and ``wall_time``. JSON has no NaN and no infinity; both become null. Each
    line is given to the operating system when it is complete, so a killed run loses no finished event. What such a run
    may leave, the beginning of a line at the end of the file, is cut off when the file is opened again.

    Args:
        section: object with ``output_path`` and ``job_name``.
    """

    def __init__(self, section: FileSection) -> None:
        self.path = folder(section) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_partial_line(self.path)
        self._file: IO[str] = self.path.open("a", encoding="utf-8", buffering=1, newline="\n")

    def write(self, events: Sequence[Event]) -> None:
        """Appends the events."""
        for event in events:
            value = event.value if math.isfinite(event.value) else None
            self._file.write(json.dumps({**event._asdict(), "value": value}, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Does nothing that a line's end has not done already."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_events(path: str | Path) -> Iterator[Event]:
    """The events of a file that `JsonlMonitor` wrote; null comes back as NaN, a last partial line is left out."""
    with Path(path).open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                row = json.loads(line)
                value = math.nan if row["value"] is None else float(row["value"])
                yield Event(row["name"], value, int(row["step"]), float(row["wall_time"]))


def _cut_partial_line(path: Path) -> None:
    """Truncates the file after its last newline, reading backwards in blocks."""
    if not path.exists():
        return
    block = 4096
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(end - block, 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
