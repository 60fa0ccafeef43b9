"""How many tokens an expert takes, and which ones when more come.

Shapes: T tokens, K experts a token, E experts.
"""

from __future__ import annotations

import math

import torch

from ds_core.ops import expert_permutation

__all__ = ["capacity_of", "counts_of", "keep"]


def capacity_of(pairs: int, num_experts: int, factor: float, minimum: int) -> int:
    """Pairs that each expert takes: its even share times `factor`, rounded up, at least `minimum`.

    Source: D. Lepikhin et al., "GShard", 2020, section 2.2; W. Fedus et al., "Switch Transformers", 2021, eq. 3.
    """
    share = pairs * factor / num_experts
    return max(math.ceil(share * (1 - 1e-12)), minimum)  # 3 * 0.8 * 10 is 24, whatever binary fractions make of it


def counts_of(experts_TK: torch.Tensor, num_experts: int) -> torch.Tensor:
    """[E] int64: pairs that name each expert; -1 names none. Does not wait for the device."""
    pairs = experts_TK.flatten()
    counts = pairs.new_zeros(num_experts)
    return counts.index_add_(0, pairs.clamp(min=0), (pairs >= 0).to(pairs.dtype))


def keep(
    experts_TK: torch.Tensor,
    num_experts: int,
    capacity: int,
    *,
    priority_TK: torch.Tensor | None = None,
    first_choices_first: bool = False,
) -> torch.Tensor:
    """[T, K] bool: which pairs of a token and an expert fit when each expert takes `capacity`.

    Args:
        experts_TK: [T, K] int64; -1 for no expert, which never fits.
        priority_TK: [T, K]: higher ones are taken first, equal ones by position; None: by position.
        first_choices_first: positions are those of slots, then tokens; else of tokens, then slots.
    """
    if priority_TK is None:
        places = expert_permutation(
            experts_TK, num_experts, capacity=capacity, first_choices_first=first_choices_first
        ).places
        return places >= 0
    order = priority_TK.flatten().argsort(descending=True, stable=True)
    places = expert_permutation(experts_TK.flatten()[order].unsqueeze(1), num_experts, capacity=capacity).places
    kept = torch.empty_like(order, dtype=torch.bool)
    kept[order] = places.flatten() >= 0
    return kept.view(experts_TK.shape)
