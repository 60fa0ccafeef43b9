"""Mixtures of experts: gates and permutations."""

from __future__ import annotations

import torch

from ds_core.ops._expert_permutation import most_places
from ds_core.ops._top_k_gate import GROUP_SCORES, SCORES
from ds_core.ops.calls.kernels import Kernels, Launcher, address, code
from ds_core.ops.checks import expect_rows_exist
from ds_core.ops.native import KernelLibrary

__all__ = ["MoeOps"]


class MoeOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._top_k_gate = self.kernel("top_k_gate")
        self._top_k_gate_backward = self.kernel("top_k_gate_backward")
        self._expert_permutation = self.kernel("expert_permutation")

    def top_k_gate(
        self,
        logits: torch.Tensor,
        bias: torch.Tensor | None,
        k: int,
        score: str,
        renormalize: bool,
        groups: int,
        groups_kept: int,
        group_score: str,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.top_k_gate`."""
        logits = logits.contiguous()
        bias = None if bias is None else bias.contiguous()
        tokens, experts = logits.shape
        weights = logits.new_empty((tokens, k), dtype=torch.float32)
        chosen = logits.new_empty((tokens, k), dtype=torch.int64)
        scores = logits.new_empty((tokens, experts), dtype=torch.float32)
        self._top_k_gate(
            logits.device,
            dtype=code(logits),
            score=SCORES[score],
            renormalize=int(renormalize),
            groups=groups,
            groups_kept=groups_kept,
            group_score=GROUP_SCORES[group_score],
            scale=scale,
            tokens=tokens,
            experts=experts,
            k=k,
            logits=address(logits),
            bias=address(bias),
            weights=address(weights),
            chosen=address(chosen),
            scores=address(scores),
        )
        return weights, chosen, scores

    def top_k_gate_backward(
        self,
        scores: torch.Tensor,
        experts: torch.Tensor,
        dweights: torch.Tensor | None,
        dscores: torch.Tensor | None,
        score: str,
        renormalize: bool,
        scale: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Gradient of the logits."""
        scores, experts = scores.contiguous(), experts.contiguous()
        dweights = None if dweights is None else dweights.contiguous()
        dscores = None if dscores is None else dscores.contiguous()
        dlogits = torch.empty_like(scores, dtype=dtype)
        self._top_k_gate_backward(
            scores.device,
            dtype=code(dtype),
            score=SCORES[score],
            renormalize=int(renormalize),
            scale=scale,
            tokens=scores.shape[0],
            experts=scores.shape[1],
            k=experts.shape[1],
            scores=address(scores),
            chosen=address(experts),
            dweights=address(dweights),
            dscores=address(dscores),
            dlogits=address(dlogits),
        )
        return dlogits

    def expert_permutation(
        self,
        experts: torch.Tensor,
        num_experts: int,
        capacity: int,
        multiple: int,
        fixed: bool,
        first_choices_first: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.expert_permutation`."""
        experts = experts.contiguous()
        size = most_places(experts.numel(), num_experts, capacity, multiple, fixed)
        places = torch.empty_like(experts)
        pairs, tokens = experts.new_empty((size,)), experts.new_empty((size,))
        counts, offsets = experts.new_empty((num_experts,)), experts.new_empty((num_experts + 1,))
        try:
            self._expert_permutation(
                experts.device,
                fixed=int(fixed),
                by_slot=int(first_choices_first),
                tokens=experts.shape[0],
                slots=experts.shape[1],
                experts=num_experts,
                capacity=capacity,
                multiple=multiple,
                size=size,
                chosen=address(experts),
                places=address(places),
                pair_of=address(pairs),
                token_of=address(tokens),
                counts=address(counts),
                offsets=address(offsets),
            )
        except IndexError:
            expect_rows_exist("expert_permutation", "experts", experts, num_experts, -1, " for none")
            raise
        return places, pairs, tokens, counts, offsets
