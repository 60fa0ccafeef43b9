"""Schedules found by list scheduling: time goes on in unit steps, and a free rank takes the best action there is."""

from __future__ import annotations

from collections.abc import Sequence

from ds_pipeline.schedules.ir import Action, Op, Schedule

__all__ = ["forward_only"]


def forward_only(rank_of_stage: Sequence[int], micro_batches: int, name: str = "inference") -> Schedule:
    """Forward passes only, for evaluation, over whatever placement of stages training has.

    A rank with several stages takes the one nearest to the output, then the lowest micro-batch: results come early
    and few activations wait between stages. Greedy: with stages that take equally long it wastes no time.
    """
    ranks = max(rank_of_stage) + 1
    last = len(rank_of_stage) - 1
    reached = [0] * (last + 2)  # micro-batches that each stage has done; the extra one stands for "never reached"
    rows: list[list[Action]] = [[] for _ in range(ranks)]
    while reached[last] < micro_batches:
        ready = list(reached)  # what is done in this step is there for others in the next
        taken: set[int] = set()
        for stage in range(last, -1, -1):
            rank, micro = rank_of_stage[stage], reached[stage]
            there = micro_batches if stage == 0 else ready[stage - 1]
            if rank not in taken and micro < there:
                rows[rank].append(Action(Op.F, stage, micro))
                reached[stage] += 1
                taken.add(rank)
    return Schedule(name, micro_batches, tuple(rank_of_stage), tuple(map(tuple, rows)))
