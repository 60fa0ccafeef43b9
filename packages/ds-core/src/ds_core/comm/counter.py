"""Count what every collective moves: calls, payload and bytes sent, by operation, group and scope.

Note [What a call sends]
Bytes sent are those of one rank, averaged over the ranks of the group where ranks differ, with the algorithm that moves
the least per link (ring or pairwise). n is the payload in bytes, N the ranks of the group; results are rounded down:

    all_reduce                       2 n (N-1) / N      n: the tensor
    reduce_scatter, all_gather         n (N-1) / N      n: the full (unscattered, gathered) buffer
    broadcast, reduce, gather, scatter n (N-1) / N      n: the tensor; the full buffer for gather and scatter
    all_to_all                         n (N-1) / N      n: the input; with uneven splits n less the rank's own slice
    send                               n                recv counts its payload and sends nothing
    barrier, *_object                  0                objects are counted as calls; their size is torch's affair

What a backend really puts on the wire may differ (trees, compression, several rails); this is the volume an algorithm
is designed for, the same on every machine, so a test can demand it exactly.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["CommReport", "CommRow", "Counter", "current_scope", "scope", "sent_ring"]

_SCOPE: contextvars.ContextVar[str] = contextvars.ContextVar("ds_core_comm_scope", default="")
current_scope = _SCOPE.get


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Label the collectives issued inside; nested scopes join with "/".

    The label belongs to the current thread or task: collectives that autograd issues from its own device threads are
    counted without it.
    """
    outer = _SCOPE.get()
    token = _SCOPE.set(f"{outer}/{name}" if outer else name)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def sent_ring(payload_bytes: int, world: int) -> int:
    """n (N-1) / N rounded down; see Note [What a call sends]."""
    return payload_bytes * (world - 1) // world


@dataclass(frozen=True, slots=True)
class CommRow:
    """What one operation on one group in one scope amounted to. `bytes_sent` is per rank."""

    op: str
    group: str
    scope: str
    calls: int
    bytes_payload: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class CommReport:
    """A snapshot of the counter, sorted; prints as a table."""

    rows: tuple[CommRow, ...]

    def select(self, op: str | None = None, group: str | None = None, scope: str | None = None) -> CommReport:
        """The rows that match every argument given."""
        return CommReport(
            tuple(
                row
                for row in self.rows
                if (op is None or row.op == op)
                and (group is None or row.group == group)
                and (scope is None or row.scope == scope)
            )
        )

    @property
    def calls(self) -> int:
        """Calls over all rows."""
        return sum(row.calls for row in self.rows)

    @property
    def bytes_payload(self) -> int:
        """Payload over all rows."""
        return sum(row.bytes_payload for row in self.rows)

    @property
    def bytes_sent(self) -> int:
        """Bytes this rank sent over all rows."""
        return sum(row.bytes_sent for row in self.rows)

    def __str__(self) -> str:
        header = ("op", "group", "scope", "calls", "payload bytes", "sent bytes")
        cells = [
            (row.op, row.group, row.scope, f"{row.calls:,}", f"{row.bytes_payload:,}", f"{row.bytes_sent:,}")
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in (header, *cells)) for column in range(len(header))]

        def line(values: tuple[str, ...]) -> str:
            return "  ".join(
                value.ljust(width) if column < 3 else value.rjust(width)
                for column, (value, width) in enumerate(zip(values, widths, strict=True))
            ).rstrip()

        return "\n".join(line(values) for values in (header, *cells))


class Counter:
    """Adds up calls by (op, group name, scope). One dictionary look-up and three additions a call."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], list[int]] = {}
        self._sequence: dict[str, int] = {}
        self._labels: dict[str, str] = {}

    def add(self, op: str, group_name: str, scope_name: str, payload: int, sent: int) -> None:
        """Count one call."""
        key = (op, group_name, scope_name)
        row = self._rows.get(key)
        if row is None:
            self._rows[key] = [1, payload, sent]
        else:
            row[0] += 1
            row[1] += payload
            row[2] += sent
        self._sequence[group_name] = self._sequence.get(group_name, 0) + 1

    def sequence(self, group_name: str) -> int:
        """How many collectives this rank has issued on the group; equal on all its ranks unless they diverged."""
        return self._sequence.get(group_name, 0)

    def label(self, group_name: str, label: str) -> None:
        """Show the group under this name."""
        self._labels[group_name] = label

    def has_label(self, group_name: str) -> bool:
        """Whether the group was given a name to be shown under."""
        return group_name in self._labels

    def label_of(self, group_name: str) -> str:
        """The name the group is shown under."""
        return self._labels.get(group_name, group_name)

    def forget_group(self, group_name: str | None) -> None:
        """A group is gone (None: all are); its name may be used again by torch for another one."""
        if group_name is None:
            self._labels.clear()
            self._sequence.clear()
        else:
            self._labels.pop(group_name, None)
            self._sequence.pop(group_name, None)

    def report(self) -> CommReport:
        """What was counted since the last reset."""
        merged: dict[tuple[str, str, str], list[int]] = {}
        for (op, name, scope_name), values in list(self._rows.items()):
            row = merged.setdefault((op, self.label_of(name), scope_name), [0, 0, 0])
            for place, value in enumerate(values):
                row[place] += value
        return CommReport(tuple(CommRow(*key, *values) for key, values in sorted(merged.items())))

    def reset(self) -> None:
        """Forget the counts; groups keep their names and sequence numbers."""
        self._rows.clear()
