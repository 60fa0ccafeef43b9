"""Interleaved 1F1B: several stages per rank, dealt out in rounds, so that the bubble shrinks with their number."""

from __future__ import annotations

from ds_pipeline.schedules.ir import Action, Op, Schedule, looped
from ds_pipeline.schedules.subset import first_micro_batches

__all__ = ["interleaved"]


def interleaved(ranks: int, micro_batches: int, stages_per_rank: int) -> Schedule:
    """1F1B over ``ranks * stages_per_rank`` stages; rank r holds stages r, r + ranks and so on.

    A rank works on groups of `ranks` micro-batches: the group goes through its first stage, then its second. The rule
    needs whole groups. For another number of micro-batches this is the schedule of the next whole group without the
    micro-batches there are not: it takes no more time and memory than that.

    Source: Narayanan et al., Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM, 2021,
    section 2.2.2 and figure 4.
    """
    whole = -(-micro_batches // ranks) * ranks
    rows = tuple(_row(rank, ranks, whole, stages_per_rank) for rank in range(ranks))
    return first_micro_batches(Schedule("interleaved", whole, looped(ranks, stages_per_rank), rows), micro_batches)


def _row(rank: int, ranks: int, micro_batches: int, each: int) -> tuple[Action, ...]:
    total = micro_batches * each

    def action(op: Op, place: int) -> Action:
        group, inside = divmod(place, ranks * each)
        turn, member = divmod(inside, ranks)
        if op is Op.B:
            turn = each - 1 - turn
        return Action(op, turn * ranks + rank, group * ranks + member)

    # The first gradient reaches this rank after the group has been through all stages and the ranks behind have
    # handed it back; until then the rank goes forward.
    warm_up = min(2 * (ranks - 1 - rank) + (each - 1) * ranks, total)
    row = [action(Op.F, place) for place in range(warm_up)]
    for place in range(total):
        if warm_up + place < total:
            row.append(action(Op.F, warm_up + place))
        row.append(action(Op.B, place))
    return tuple(row)
