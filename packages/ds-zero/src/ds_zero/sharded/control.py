"""Control rounds: what ranks tell each other when a pass ends, or when one needs what its plan did not foresee.

A round is one all-gather of a few integers over the data-parallel ranks, through host memory. Rounds pair up because
every rank holds one at the beginning and one at the end of each pass, and one for each need it did not plan. Ranks that
went different ways meet in one where they say different things, which is an error that names them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ds_core import comm
from ds_core.errors import EngineError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Control", "Message", "Posted", "Word", "beside"]


def beside(group: ProcessGroup | None, name: str, backend: str | None = None) -> ProcessGroup | None:
    """A new group of the ranks of `group`, whose collectives keep an order of their own. Called on those ranks only."""
    ranks = comm.get_all_ranks_from_group(group)
    return comm.new_group(ranks, backend=backend, name=name, use_local_synchronization=True)


class Word(enum.IntEnum):
    """What a rank says in a round."""

    DONE = 0
    """My pass is over."""
    REQUEST = 1
    """I need a unit my plan did not foresee."""
    OUTSIDE = 2
    """I call a module outside of a pass."""
    BEGIN = 3
    """I begin a pass."""


class Message(NamedTuple):
    """One rank's side of a round.

    Attributes:
        word: see `Word`.
        phase: number of the pass's phase.
        number: how many passes this rank began.
        unit: the unit needed; -1 for none.
        after: the unit used before it; -1 for none.
        digest: a checksum of the order of use so far.
    """

    word: int
    phase: int
    number: int
    unit: int = -1
    after: int = -1
    digest: int = 0


class Posted(NamedTuple):
    """A round under way; holds what its collective reads and writes."""

    mine: torch.Tensor
    table: torch.Tensor
    handle: Any


class Control:
    """Rounds over one group of ranks.

    Args:
        group: the data-parallel group; rounds go over a gloo group of its ranks that is theirs alone.
        titles: names of units, for messages.
        phases: names of phases.
    """

    def __init__(self, group: ProcessGroup | None, ranks: int, titles: Sequence[str], phases: Sequence[str]) -> None:
        self._ranks = ranks
        self._titles = titles
        self._phases = phases
        self._group: ProcessGroup | None = beside(group, "gather control", backend="gloo")

    def round(self, message: Message) -> list[Message]:
        """Everyone's message, by rank. Called on all ranks.

        Raises:
            EngineError: ranks are in different passes, so their next collectives would not match.
        """
        return self.finish(self.post(message))

    def post(self, message: Message) -> Posted:
        """Begins a round, without waiting for others."""
        mine = torch.tensor(message, dtype=torch.int64)
        table = torch.empty(self._ranks * len(message), dtype=torch.int64)
        with comm.scope("gather control"):
            return Posted(mine, table, comm.all_gather_into_tensor(table, mine, group=self._group, async_op=True))

    def finish(self, posted: Posted) -> list[Message]:
        """Ends a round; see `round`."""
        posted.handle.wait()
        rows = [Message(*row) for row in posted.table.view(self._ranks, -1).tolist()]
        self._check(rows)
        return rows

    def _check(self, rows: list[Message]) -> None:
        kinds = {row.word if row.word in (Word.OUTSIDE, Word.BEGIN) else Word.DONE for row in rows}
        places = {(row.phase, row.number) for row in rows}
        if len(kinds) == 1 and (kinds == {Word.OUTSIDE} or len(places) == 1):
            return
        said = "; ".join(f"rank {rank} {self._say(row)}" for rank, row in enumerate(rows))
        raise EngineError(
            f"ranks went different ways through a model sharded by zero_optimization.stage 3: {said}. Every rank must "
            "call the engine, its backward and its submodules equally often and in one order"
        )

    def _say(self, row: Message) -> str:
        unit = self._titles[row.unit] if row.unit >= 0 else ""
        if row.word == Word.OUTSIDE:
            return f"calls module {unit!r} outside of the engine"
        where = f"pass {row.number}, {self._phases[row.phase]}"
        if row.word == Word.BEGIN:
            return f"begins {where}"
        return f"needs {unit!r} in {where}" if row.word == Word.REQUEST else f"has ended {where}"
