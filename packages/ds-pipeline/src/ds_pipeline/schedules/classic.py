"""GPipe and 1F1B: one stage per rank, whole backward passes.

Every stage goes backward through its micro-batches in their order, so that weight gradients are summed in the order of
plain accumulation and the sums are equal to the last bit.
"""

from __future__ import annotations

from ds_pipeline.schedules.ir import Action, Op, Schedule, looped

__all__ = ["gpipe", "one_f_one_b"]


def gpipe(ranks: int, micro_batches: int) -> Schedule:
    """All forward passes, then all backward passes; a rank holds the activations of every micro-batch.

    The paper's figure goes backward from the last micro-batch to the first. Here the first goes first: the same time
    and memory, and sums of gradients as in plain accumulation.

    Source: Huang et al., GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism, 2019,
    section 2.3 and figure 2.
    """
    rows = tuple(
        tuple(Action(op, rank, micro) for op in (Op.F, Op.B) for micro in range(micro_batches)) for rank in range(ranks)
    )
    return Schedule("gpipe", micro_batches, looped(ranks), rows)


def one_f_one_b(ranks: int, micro_batches: int) -> Schedule:
    """Forward passes until the first gradient can arrive, then forward and backward in turn, then what is left.

    Rank r holds at most ``ranks - r`` micro-batches, whatever their number. The time is that of GPipe.

    Source: Narayanan et al., Memory-Efficient Pipeline-Parallel DNN Training, 2021 (PipeDream-Flush), section 3.2;
    Narayanan et al., Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM, 2021, 2.2.1.
    """
    return Schedule(
        "1f1b", micro_batches, looped(ranks), tuple(_one_f_one_b(rank, ranks, micro_batches) for rank in range(ranks))
    )


def _one_f_one_b(rank: int, ranks: int, micro_batches: int) -> tuple[Action, ...]:
    warm_up = min(ranks - 1 - rank, micro_batches)
    row = [Action(Op.F, rank, micro) for micro in range(warm_up)]
    for micro in range(micro_batches):
        if warm_up + micro < micro_batches:
            row.append(Action(Op.F, rank, warm_up + micro))
        row.append(Action(Op.B, rank, micro))
    return tuple(row)
