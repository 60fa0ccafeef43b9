"""Gates and the bare layer under DeepSpeed's names."""

from __future__ import annotations

import torch

from ds_moe.experts import Experts
from ds_moe.gate import TopKGate
from ds_moe.gating import top1gating, top2gating, topkgating
from ds_moe.mixture import Mixture
from ds_moe.noise import gumbel_rsample, multiplicative_jitter
from ds_moe.stacked import StackedExperts

__all__ = [
    "MOELayer",
    "TopKGate",
    "gumbel_rsample",
    "multiplicative_jitter",
    "top1gating",
    "top2gating",
    "topkgating",
]


class MOELayer(Mixture):
    """A gate and experts: the output alone; what the gate decided is kept on the layer.

    Args:
        gate: what chooses experts.
        experts: all of them.
        ep_group_name: not used; for calls written for DeepSpeed.
        ep_size: ranks that shall share the experts.
        num_local_experts: not used: it follows from the experts and the ranks.
        use_tutel: not used.

    Attributes:
        l_aux: scalar of the last forward, to add to the loss.
        exp_counts: [experts] int64 of the last forward.
    """

    def __init__(
        self,
        gate: TopKGate,
        experts: Experts | StackedExperts,
        ep_group_name: str = "",
        ep_size: int = 1,
        num_local_experts: int | None = None,
        use_tutel: bool = False,
    ) -> None:
        super().__init__(gate, experts, ep_size)
        self.l_aux: torch.Tensor | None = None
        self.exp_counts: torch.Tensor | None = None

    def forward(self, input: torch.Tensor, used_token: torch.Tensor | None = None) -> torch.Tensor:
        """The output for tokens [..., features], shaped like them; see `MoE`."""
        mixed = self.mix(input, used_token)
        self.l_aux, self.exp_counts = mixed.routing.l_aux, mixed.routing.counts
        return mixed.output
