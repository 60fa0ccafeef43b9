"""A schedule as a text file, to keep, to compare and to write by hand.

    schedule: 1f1b
    micro-batches: 2
    stages: 0 1          # the rank of each stage, from the input to the output
    rank 0: 0F0 0F1 0B0 0B1
    rank 1: 1F0 1B0 1F1 1B1

An action is stage, op and micro-batch: ``2F0``. Ops are F (forward), B (backward), I (backward for inputs) and W
(backward for weights). The three header lines come first, in any order; then one line per rank. ``#`` begins a comment
at the start of a line or after a space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ds_core.errors import did_you_mean
from ds_pipeline.errors import ScheduleError, ScheduleTextError
from ds_pipeline.schedules.ir import Action, Op, Schedule

__all__ = ["from_text", "to_text"]

HEADERS = ("schedule", "micro-batches", "stages")
_COMMENT = re.compile(r"(^|\s)#.*")
_LINE = re.compile(r"\s*(?P<key>[^:]*?)\s*:\s*(?P<value>.*?)\s*$")
_RANK = re.compile(r"rank\s+(\d{1,9})", re.ASCII)
_ACTION = re.compile(r"(\d{1,9})([A-Z])(\d{1,9})", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_OPS = ", ".join(op.value for op in Op)


def to_text(schedule: Schedule) -> str:
    """The schedule as text that `from_text` reads.

    Raises:
        ScheduleError: a name that a header line cannot hold.
    """
    name = schedule.name
    if not name or name != name.strip() or not name.isprintable() or _COMMENT.search(name):
        raise ScheduleError(
            f"a schedule's name must be printable, without spaces around it and without ' #', got {name!r}"
        )
    lines = [
        f"schedule: {name}",
        f"micro-batches: {schedule.micro_batches}",
        f"stages: {' '.join(map(str, schedule.rank_of_stage))}".rstrip(),
    ]
    lines += [f"rank {rank}: {' '.join(map(str, row))}".rstrip() for rank, row in enumerate(schedule.rows)]
    return "\n".join(lines) + "\n"


def from_text(text: str) -> Schedule:
    """The schedule that the text describes; whether it can run is for `validate` to say.

    Raises:
        ScheduleTextError: names line and column, what is there and what is allowed.
    """
    read = _Reader()
    number = 0
    for number, line in enumerate(text.split("\n"), start=1):
        code = _COMMENT.sub("", line.rstrip("\r"))
        if code.strip():
            read.line(number, code)
    for name in HEADERS:
        if name not in read.headers:
            raise ScheduleTextError(f"the text ends without a line {name + ':'!r}", line=number, column=1)
    if not read.rows:
        raise ScheduleTextError("the text ends without a line 'rank 0:'", line=number, column=1)
    return Schedule(read.name, read.micro_batches, read.stages, tuple(read.rows))


@dataclass
class _Reader:
    """What has been read so far."""

    headers: set[str] = field(default_factory=set)
    name: str = ""
    micro_batches: int = 0
    stages: tuple[int, ...] = ()
    rows: list[tuple[Action, ...]] = field(default_factory=list)

    def line(self, number: int, code: str) -> None:
        """Take one line that is neither empty nor a comment."""
        found = _LINE.match(code)
        first = len(code) - len(code.lstrip()) + 1
        if found is None:
            raise ScheduleTextError(
                f"expected 'name: value' or 'rank N: actions', got {code.strip()!r}", line=number, column=first
            )
        key, value, at = found["key"], found["value"], found.start("value")
        rank = _RANK.fullmatch(key)
        if rank is not None:
            if int(rank[1]) != len(self.rows):
                raise ScheduleTextError(
                    f"expected the row of rank {len(self.rows)}, got that of rank {int(rank[1])}",
                    line=number,
                    column=first,
                )
            self.rows.append(tuple(_action(word[0], number, at + word.start()) for word in re.finditer(r"\S+", value)))
            return
        if key not in HEADERS:
            known = (*HEADERS, "rank")
            message = f"unknown line {key!r}; known are {', '.join(HEADERS)}, rank N.{did_you_mean(key, known)}"
            raise ScheduleTextError(message, line=number, column=first)
        if key in self.headers:
            raise ScheduleTextError(f"{key!r} is there a second time", line=number, column=first)
        self.headers.add(key)
        if key == "schedule":
            if not value:
                raise ScheduleTextError("the schedule needs a name", line=number, column=len(code.rstrip()) + 1)
            self.name = value
        elif key == "micro-batches":
            self.micro_batches = _count(value, number, at)
        else:
            self.stages = tuple(_count(word[0], number, at + word.start()) for word in re.finditer(r"\S+", value))


def _count(word: str, line: int, at: int) -> int:
    if not _NUMBER.fullmatch(word):
        raise ScheduleTextError(f"expected a number like 4, got {word!r}", line=line, column=at + 1)
    return int(word)


def _action(word: str, line: int, at: int) -> Action:
    found = _ACTION.fullmatch(word)
    if found is None:
        raise ScheduleTextError(
            f"expected an action like 2F0 (stage, op, micro-batch), got {word!r}", line=line, column=at + 1
        )
    stage, op, micro = found.groups()
    if op not in Op.__members__:
        raise ScheduleTextError(
            f"unknown op {op!r} in {word!r}; ops are {_OPS}", line=line, column=at + 1 + found.start(2)
        )
    return Action(Op[op], int(stage), int(micro))
