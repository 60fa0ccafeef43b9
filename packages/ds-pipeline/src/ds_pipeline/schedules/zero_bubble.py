"""ZB-H1: 1F1B with its backward split, so that weight passes fill the gaps."""

from __future__ import annotations

from ds_pipeline.schedules.ir import Action, Op, Schedule, looped

__all__ = ["zb_h1"]


def zb_h1(ranks: int, micro_batches: int) -> Schedule:
    """1F1B with weight passes put off by one micro-batch more on each rank.

    Rank r starts with r fewer forwards than rank 0 and keeps r weight passes waiting, so every rank holds as much as
    the first rank of 1F1B, and at the end the waiting passes fill what would be the bubble. With at least as many
    micro-batches as ranks, and weight passes no longer than the others, a rank is idle for
    ``(ranks - 1) * (T_F + T_I - T_W)``, a third of 1F1B's at equal times.

    Source: Qi et al., Zero Bubble Pipeline Parallelism, 2023, section 2.1 and figure 3.
    """
    return Schedule(
        "zb-h1", micro_batches, looped(ranks), tuple(_zb_h1(rank, ranks, micro_batches) for rank in range(ranks))
    )


def _zb_h1(rank: int, ranks: int, micro_batches: int) -> tuple[Action, ...]:
    warm_up = min(ranks - 1 - rank, micro_batches)
    row = [Action(Op.F, rank, micro) for micro in range(warm_up)]
    weights = 0
    for micro in range(micro_batches):
        if warm_up + micro < micro_batches:
            row.append(Action(Op.F, rank, warm_up + micro))
        row.append(Action(Op.I, rank, micro))
        if micro >= rank:
            row.append(Action(Op.W, rank, weights))
            weights += 1
    row += [Action(Op.W, rank, micro) for micro in range(weights, micro_batches)]
    return tuple(row)
