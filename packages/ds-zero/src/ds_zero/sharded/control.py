"""Control rounds: what ranks tell each other when a pass ends, or when one needs what its plan did not foresee.

A round is one all-gather of a few integers over the data-parallel ranks, through host memory. Rounds pair up because
every rank holds one at the end of each pass, and one for each need it did not plan.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist

from ds_core import comm
from ds_core.errors import EngineError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Control", "Message", "Word"]


class Word(enum.IntEnum):
    """What a rank says in a round."""

    DONE = 0
    """My pass is over."""
    REQUEST = 1
    """I need a unit my plan did not foresee."""
    OUTSIDE = 2
    """I call a module outside of a pass."""


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


class Control:
    """Rounds over one group of ranks.

    Args:
        group: the data-parallel group; where its tensors are not in host memory a gloo group beside it is made.
        titles: names of units, for messages.
        phases: names of phases.
    """

    def __init__(self, group: ProcessGroup | None, ranks: int, titles: Sequence[str], phases: Sequence[str]) -> None:
        self._ranks = ranks
        self._titles = titles
        self._phases = phases
        self._group: ProcessGroup | None = group
        if ranks > 1 and "gloo" not in str(dist.get_backend(group)):
            self._group = dist.new_group(dist.get_process_group_ranks(group or dist.group.WORLD), backend="gloo")

    def round(self, message: Message) -> list[Message]:
        """Everyone's message, by rank. Called on all ranks.

        Raises:
            EngineError: ranks are in different passes, so their next collectives would not match.
        """
        if self._ranks == 1:
            return [message]
        mine = torch.tensor(message, dtype=torch.int64)
        table = torch.empty(self._ranks * len(message), dtype=torch.int64)
        with comm.scope("gather control"):
            comm.all_gather_into_tensor(table, mine, group=self._group)
        rows = [Message(*row) for row in table.view(self._ranks, -1).tolist()]
        self._check(rows)
        return rows

    def _check(self, rows: list[Message]) -> None:
        outside = {row.word == Word.OUTSIDE for row in rows}
        places = {(row.phase, row.number) for row in rows}
        if len(outside) == 1 and (True in outside or len(places) == 1):
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
        return f"needs {unit!r} in {where}" if row.word == Word.REQUEST else f"has ended {where}"
