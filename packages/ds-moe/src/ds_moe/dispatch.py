"""Tokens to the ranks that hold their experts, and what the experts made of them back to the tokens.

Shapes: T tokens of this rank, K experts a token, H features, E experts over all ranks, N rows that arrive here.

Note [Who waits for whom]
    Every rank of the group calls the same three exchanges (counts, rows there, rows back) and their two backwards,
    whatever it has to send; a rank without a single token sends and takes nothing, and waits for nobody longer than
    for that. So no rank may leave a layer out that the others pass through.

Note [The order of rows]
    An expert's rows come in the order of the ranks of the group, then of tokens, then of slots. Where those ranks hold
    consecutive pieces of a batch, that is the order in which one rank alone would have them, and the products of
    matrices are the same to the bit (where rows are multiples of 64 bytes: libraries of products may add up in another
    order for rows that lie differently in memory).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ds_core import comm
from ds_core.ops import combine_rows, expert_permutation, gather_rows
from ds_moe.errors import MoeConfigError, RoutingError
from ds_moe.exchange import send_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Compute", "Dispatch", "Groups"]


class Groups(NamedTuple):
    """Which rows belong to which of this rank's experts: consecutive runs, in the order of the experts.

    Args:
        sizes: rows of each expert, zeros among them.
        offsets: [local experts + 1] int64, where each run begins and the end of the last: as `grouped_matmul` wants.
    """

    sizes: tuple[int, ...]
    offsets: torch.Tensor


Compute = Callable[[torch.Tensor, Groups], torch.Tensor]
"""``compute(rows [N, H], groups) -> [N, H]``: this rank's experts, each on its run of rows."""


class Dispatch:
    """Sends rows to experts over the ranks of a group. Rank r holds experts ``r * E / ranks`` and the following.

    Args:
        group: the expert-parallel ranks; None for one rank, which communicates with nobody.
        num_experts: experts over all ranks, a multiple of the ranks.

    Raises:
        MoeConfigError: the experts do not divide over the ranks.
    """

    def __init__(self, group: ProcessGroup | None, num_experts: int) -> None:
        self.group: ProcessGroup | None = group
        self.num_experts: int = num_experts
        self.ranks: int = 1 if group is None else group.size()
        if num_experts < 1 or num_experts % self.ranks:
            raise MoeConfigError(
                f"num_experts must be a multiple of the ranks that share them ({self.ranks}), got {num_experts}; "
                "choose another number of experts or an expert-parallel size (ep_size, autoep_size) that divides it"
            )
        self.local_experts: int = num_experts // self.ranks

    def run(
        self,
        x_TH: torch.Tensor,
        experts_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        compute: Compute,
        *,
        meanwhile: Callable[[], Any] | None = None,
    ) -> torch.Tensor:
        """Each token the weighted sum of what its experts made of it. Called on all ranks of the group.

        Differentiable in `x_TH`, `weights_TK` and whatever `compute` uses. Backward sends as much as forward.

        Args:
            x_TH: [T, H], float32, bfloat16 or float16. T may differ between ranks and be 0.
            experts_TK: [T, K] int64, numbers of experts over all ranks; -1 for a pair that goes nowhere.
            weights_TK: [T, K], float32, bfloat16 or float16.
            compute: this rank's experts; called once, also with no rows.
            meanwhile: called while rows travel to their experts.

        Returns:
            [T, H] in the dtype of `x_TH`; zeros for a token without an expert. Summed in float32 in the order of slots.

        Raises:
            RoutingError: a shape does not fit.
        """
        _check(x_TH, experts_TK, weights_TK)
        sorted_ = expert_permutation(experts_TK, self.num_experts)
        if self.group is None or self.ranks == 1:
            sizes = (sorted_.offsets[1:] - sorted_.offsets[:-1]).tolist()
            rows_NH = gather_rows(x_TH, sorted_.tokens[: sum(sizes)])
            if meanwhile is not None:
                meanwhile()
            return combine_rows(compute(rows_NH, Groups(tuple(sizes), sorted_.offsets)), sorted_.places, weights_TK)

        asked_RE = (sorted_.offsets[1:] - sorted_.offsets[:-1]).view(self.ranks, self.local_experts)
        given_RE = torch.empty_like(asked_RE)
        comm.all_to_all_single(given_RE, asked_RE, group=self.group)
        plan: list[list[list[int]]] = torch.stack((asked_RE, given_RE)).tolist()  # the one time the host waits
        sent, received = ([sum(row) for row in table] for table in plan)

        rows_NH = gather_rows(x_TH, sorted_.tokens[: sum(sent)])
        journey = send_rows(rows_NH, sent, received, self.group)
        if meanwhile is not None:
            meanwhile()
        by_expert, by_rank = _resorted(given_RE, sum(received))
        arrived_NH = gather_rows(journey.arrive(), by_expert)
        made_NH = compute(arrived_NH, _groups(plan[1], given_RE))
        back_NH = send_rows(gather_rows(made_NH, by_rank), received, sent, self.group).arrive()
        return combine_rows(back_NH, sorted_.places, weights_TK)


def _resorted(given_RE: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From rows that come by rank, then expert, to the order by expert, then rank; and from there back. Each [total].

    Args:
        given_RE: [ranks, local experts] rows from each rank for each expert.
    """
    ranks, experts = given_RE.shape
    expert = torch.arange(experts, device=given_RE.device).repeat(ranks)
    of_row = expert.repeat_interleave(given_RE.flatten(), output_size=total)
    by_expert = of_row.argsort(stable=True)
    by_rank = torch.empty_like(by_expert)
    by_rank[by_expert] = torch.arange(total, device=given_RE.device)
    return by_expert, by_rank


def _groups(given: list[list[int]], given_RE: torch.Tensor) -> Groups:
    sizes = tuple(sum(column) for column in zip(*given, strict=True))
    return Groups(sizes, torch.nn.functional.pad(given_RE.sum(0).cumsum(0), (1, 0)))


def _check(x_TH: torch.Tensor, experts_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
    if x_TH.dim() != 2 or experts_TK.dim() != 2 or experts_TK.shape != weights_TK.shape:
        raise RoutingError(
            f"tokens must be [T, H], experts and weights [T, K], got {tuple(x_TH.shape)}, {tuple(experts_TK.shape)} "
            f"and {tuple(weights_TK.shape)}; flatten batch and sequence first"
        )
    if x_TH.shape[0] != experts_TK.shape[0]:
        raise RoutingError(f"there are {x_TH.shape[0]} tokens but experts for {experts_TK.shape[0]}; pass a row each")
