"""The gates under DeepSpeed's names: from logits to dense tables of weights and places, for code written for them.

Shapes: T tokens, E experts, C places an expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ds_core import comm
from ds_core.ops import expert_permutation
from ds_moe.routing import RouterPolicy, Routing, route

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["DenseRouting", "to_dense", "top1gating", "top2gating", "topkgating"]


class DenseRouting(NamedTuple):
    """What `top1gating` and its kin return.

    Args:
        l_aux: scalar, the load-balancing loss.
        combine_weights: [T, E, C] float32: the weight of each token at its place, zeros elsewhere.
        dispatch_mask: [T, E, C] bool: where that is not zero.
        exp_counts: [E] int64: pairs that asked for each expert, dropped ones too.
    """

    l_aux: torch.Tensor
    combine_weights: torch.Tensor
    dispatch_mask: torch.Tensor
    exp_counts: torch.Tensor


def top1gating(
    logits: torch.Tensor,
    capacity_factor: float,
    min_capacity: int,
    used_token: torch.Tensor | None = None,
    noisy_gate_policy: str | None = None,
    drop_tokens: bool = True,
    use_rts: bool = True,
    ep_group: ProcessGroup | None = None,
) -> DenseRouting:
    """One expert a token, its weight the probability.

    Args:
        logits: [T, E].
        capacity_factor, min_capacity: capacity of an expert.
        used_token: [T], zeros for tokens that go nowhere.
        noisy_gate_policy: ``"RSample"`` samples the expert. Jitter is of the input of a gate, so does nothing here.
        drop_tokens: False serves all; C is then the largest load, over the ranks of `ep_group`.
        use_rts: of an expert's tokens above its capacity, keep a random choice instead of the first.
        ep_group: ranks that shall agree on C.

    Source: W. Fedus et al., "Switch Transformers", 2021, section 2.2.
    """
    policy = RouterPolicy(
        k=1,
        capacity_factor=capacity_factor,
        min_capacity=min_capacity,
        noise=noisy_gate_policy,
        drop_tokens=drop_tokens,
        random_selection=use_rts,
    )
    return to_dense(route(logits, policy, training=True, used=used_token), logits.shape[1], ep_group)


def top2gating(
    logits: torch.Tensor,
    capacity_factor: float,
    min_capacity: int,
    drop_tokens: bool = True,
    ep_group: ProcessGroup | None = None,
    top2_2nd_expert_sampling: bool = True,
) -> DenseRouting:
    """Two experts a token, their weights adding up to 1 over those that had room; the loss is of first choices.

    Source: D. Lepikhin et al., "GShard", 2020, algorithm 1.
    """
    policy = RouterPolicy(
        k=2,
        capacity_factor=capacity_factor,
        min_capacity=min_capacity,
        drop_tokens=drop_tokens,
        sample_second=top2_2nd_expert_sampling,
    )
    return to_dense(route(logits, policy, training=True), logits.shape[1], ep_group, first_choices_first=True)


def topkgating(
    logits: torch.Tensor,
    k: int,
    capacity_factor: float,
    min_capacity: int,
    drop_tokens: bool = True,
    ep_group: ProcessGroup | None = None,
    drop_policy: str = "probs",
) -> DenseRouting:
    """`k` experts a token, their weights adding up to 1 over those that had room.

    Args:
        drop_policy: ``"probs"`` keeps the tokens an expert is most probable for, ``"position"`` the first.
    """
    policy = RouterPolicy(
        k=k,
        capacity_factor=capacity_factor,
        min_capacity=min_capacity,
        drop_tokens=drop_tokens,
        drop_policy=drop_policy,
        random_selection=False,
        sample_second=False,
        normalise=True,
    )
    return to_dense(route(logits, policy, training=True), logits.shape[1], ep_group)


def to_dense(
    routing: Routing,
    num_experts: int,
    ep_group: ProcessGroup | None = None,
    *,
    first_choices_first: bool = False,
) -> DenseRouting:
    """Tables of T x E x C from lists of experts. Called on all ranks of `ep_group`.

    Args:
        ep_group: ranks that shall agree on C, where nothing is dropped.
        first_choices_first: places are taken in the order of slots, then tokens; else of tokens, then slots.
    """
    capacity = routing.capacity
    if capacity is None:
        most = routing.counts.max().reshape(1)
        if ep_group is not None:
            comm.all_reduce(most, comm.ReduceOp.MAX, group=ep_group)
        capacity = int(most)
    capacity = max(capacity, 1)  # a table without places would have nowhere to put a zero
    sorted_ = expert_permutation(routing.experts, num_experts, first_choices_first=first_choices_first)
    place = sorted_.places - sorted_.offsets[routing.experts.clamp(min=0)]
    tokens = routing.experts.shape[0]
    combine = routing.weights.new_zeros((tokens, num_experts * capacity))
    at = (routing.experts * capacity + place).clamp(min=0)
    combine = combine.scatter_add(1, at, routing.weights * (routing.experts >= 0))
    combine = combine.view(tokens, num_experts, capacity)
    return DenseRouting(routing.l_aux, combine, combine.bool(), routing.counts)
