"""ZB-V and DualPipeV: two stages per rank, laid down the ranks and up again, with a split backward.

Rows follow the papers' rules for unit costs (T_F = T_I = T_W), phase by phase. Every stage takes its weight passes in
the order of the micro-batches, so sums of gradients are those of plain accumulation.
"""

from __future__ import annotations

from collections import deque

from ds_pipeline.schedules.ir import Action, Op, Schedule, v_shaped
from ds_pipeline.schedules.listing import weights_when_idle
from ds_pipeline.schedules.subset import first_micro_batches

__all__ = ["dualpipe_v", "zb_v"]


class _Row:
    """One rank's row of a V-shaped schedule: the next micro-batch of each op at both of its stages."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.stages: tuple[int, int] = (rank, 2 * ranks - 1 - rank)
        self.actions: list[Action] = []
        self.waiting: deque[Action] = deque()
        self._next: dict[tuple[Op, int], int] = {}

    def add(self, op: Op, side: int) -> None:
        """The next forward or backward of the stage on the way down (side 0) or up (side 1)."""
        key = (Op.F if op is Op.F else Op.B, side)
        micro = self._next.get(key, 0)
        self._next[key] = micro + 1
        self.actions.append(Action(op, self.stages[side], micro))
        if op is Op.I:
            self.waiting.append(Action(Op.W, self.stages[side], micro))

    def weight(self) -> None:
        """The weight pass that waits longest."""
        self.actions.append(self.waiting.popleft())

    def done(self, op: Op, side: int) -> int:
        """How many micro-batches have had their forward or backward."""
        return self._next.get((Op.F if op is Op.F else Op.B, side), 0)


def dualpipe_v(ranks: int, micro_batches: int) -> Schedule:
    """One half of DualPipe's two-way pipeline, folded into a V; forward and backward in pairs that may overlap.

    In the middle, a forward of one stage and a backward of the other stage of the rank follow each other, so that a
    runtime may send for the one while it computes the other. Backwards are split only where it shortens the start and
    the end. A rank holds at most ``2 * ranks + 1`` stage-micro-batches. Simulated one after the other, with T_F = T_I,
    a rank is idle for ``(ranks - 1) * (T_F + T_I - T_W)`` of its stages' times. DeepSeek has ``T_I`` more in the
    brackets: it counts a pair as one block whose results go on when both are done.

    The rule needs twice as many micro-batches as ranks; for fewer this is that schedule without those there are not.

    Source: DeepSeek-AI, DeepSeek-V3 Technical Report, 2024, section 3.2.1; the DualPipe repository's description of
    DualPipeV, 2025; Qi et al., DualPipe could be better without the Dual, 2025 ("cut in half").
    """
    whole = max(micro_batches, 2 * ranks)
    rows = tuple(_dualpipe_v(rank, ranks, whole) for rank in range(ranks))
    return first_micro_batches(Schedule("dualpipev", whole, v_shaped(ranks), rows), micro_batches)


def _dualpipe_v(rank: int, ranks: int, micro_batches: int) -> tuple[Action, ...]:
    row = _Row(rank, ranks)
    behind = ranks - 1 - rank
    for _ in range(2 * behind):  # until the first micro-batch is about to come back up
        row.add(Op.F, 0)
    for _ in range(rank + 1):
        row.add(Op.F, 0)
        row.add(Op.F, 1)
    for _ in range(behind):  # its gradient: hand it on first
        row.add(Op.I, 1)
        row.weight()
        row.add(Op.F, 1)
    for _ in range(micro_batches - 2 * ranks + rank + 1):  # the pairs
        for forward in (0, 1):
            row.add(Op.F, forward)
            row.add(Op.B, 1 - forward)
    for _ in range(behind):  # no more forwards on the way down
        row.add(Op.B, 1)
        row.add(Op.F, 1)
        row.add(Op.B, 0)
    for step in range(2 * (rank + 1)):  # nor up: half whole, half handed on first
        row.add(Op.B if step < rank + 1 else Op.I, 1 - step % 2)
    for _ in range(behind):
        row.weight()
        row.add(Op.I, 0)
    while row.waiting:
        row.weight()
    return tuple(row.actions)


def zb_v(ranks: int, micro_batches: int) -> Schedule:
    """Zero bubble in the memory of 1F1B: between its first and last action no rank is ever idle, at equal times.

    A rank holds at most ``2 * ranks`` stage-micro-batches, which are half as large as those of `ranks` stages. The
    rule needs twice as many micro-batches as ranks. For fewer, forwards and backwards for inputs keep their order, and
    weight passes move to where a rank would wait (greedy); from as many micro-batches as ranks on this is as fast.

    Source: Qi et al., Zero Bubble Pipeline Parallelism, 2023, section 6 (ZB-V); Qi et al., Pipeline Parallelism with
    Controllable Memory, 2024, section 3 (V-ZB).
    """
    whole = max(micro_batches, 2 * ranks)
    rows = tuple(_zb_v(rank, ranks, whole) for rank in range(ranks))
    made = Schedule("zbv", whole, v_shaped(ranks), rows)
    if micro_batches == whole:
        return made
    return weights_when_idle(first_micro_batches(made, micro_batches), 2 * ranks)


def _zb_v(rank: int, ranks: int, micro_batches: int) -> tuple[Action, ...]:
    row = _Row(rank, ranks)
    behind = ranks - 1 - rank
    for _ in range(2 * behind + 1):  # until the first micro-batch comes back up
        row.add(Op.F, 0)
    for _ in range(rank):
        row.add(Op.F, 1)
        row.add(Op.F, 0)
    for _ in range(behind + 1):  # until the first gradient comes back down
        row.add(Op.F, 1)
        row.add(Op.I, 1)
        row.weight()
    while row.done(Op.F, 1) < micro_batches:  # steady: one micro-batch of all six passes
        if row.done(Op.F, 0) < micro_batches:
            row.add(Op.F, 0)
        row.add(Op.I, 0)
        row.weight()
        row.add(Op.F, 1)
        row.add(Op.I, 1)
        row.weight()
    for _ in range(rank):  # others wait for these gradients; weights can wait
        row.add(Op.I, 0)
        row.add(Op.I, 1)
    for _ in range(behind + 1):
        row.add(Op.I, 0)
        row.weight()
    while row.waiting:
        row.weight()
    return tuple(row.actions)
