"""`TopKGate`: a linear layer in float32 and a policy, which send each token to its experts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ds_moe.errors import MoeConfigError
from ds_moe.gating import DenseRouting, to_dense
from ds_moe.load import Load
from ds_moe.noise import multiplicative_jitter
from ds_moe.routing import RouterPolicy, Routing, route

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["TopKGate"]

_BIAS_UNIT = 2.0**-32


class TopKGate(torch.nn.Module):
    """Chooses `k` of `num_experts` experts for each token.

    Args:
        model_dim: features of a token.
        num_experts: experts over all ranks.
        k, capacity_factor, eval_capacity_factor, min_capacity, drop_tokens: see `RouterPolicy`.
        noisy_gate_policy: its `noise`.
        use_rts: its `random_selection`.
        ep_group: ranks whose capacities are made equal where dense tables are asked for and nothing is dropped.
        top2_2nd_expert_sampling: its `sample_second`.
        policy: all of that at once, with what DeepSpeed's gate has not; the arguments above but `ep_group` are then not
            looked at.
        bias_update_rate: for balancing by bias: how far the bias of an expert moves after a step.

    Attributes:
        wg: the linear layer, without bias.
        load: what passed since the last update.

    Raises:
        MoeConfigError: a setting that cannot be used.

    Source: bias: DeepSeek-AI, "DeepSeek-V3 technical report", 2024, section 2.1.2.
    """

    def __init__(
        self,
        model_dim: int,
        num_experts: int,
        k: int = 1,
        capacity_factor: float = 1.0,
        eval_capacity_factor: float = 1.0,
        min_capacity: int = 8,
        noisy_gate_policy: str | None = None,
        drop_tokens: bool = True,
        use_rts: bool = True,
        ep_group: ProcessGroup | None = None,
        top2_2nd_expert_sampling: bool = True,
        *,
        policy: RouterPolicy | None = None,
        bias_update_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        self.policy: RouterPolicy = policy or RouterPolicy(
            k=k,
            capacity_factor=capacity_factor,
            eval_capacity_factor=eval_capacity_factor,
            min_capacity=min_capacity,
            drop_tokens=drop_tokens,
            noise=noisy_gate_policy,
            random_selection=use_rts,
            sample_second=top2_2nd_expert_sampling,
        )
        _check(num_experts, self.policy, bias_update_rate)
        self.num_experts: int = num_experts
        self.ep_group: ProcessGroup | None = ep_group
        self.bias_update_rate: float = bias_update_rate
        self.load: Load = Load(num_experts)
        self.wg: torch.nn.Linear = torch.nn.Linear(model_dim, num_experts, bias=False)
        self.bias_steps: torch.Tensor | None
        # Whole numbers, which no change of precision of the model touches: a bias in bfloat16 would stop moving.
        steps = torch.zeros(num_experts, dtype=torch.int64) if self.policy.balancing == "bias" else None
        self.register_buffer("bias_steps", steps)

    @property
    def k(self) -> int:
        """Experts a token."""
        return self.policy.k

    @property
    def expert_bias(self) -> torch.Tensor | None:
        """[experts] float32 added to scores to choose; None unless balancing is by bias."""
        return None if self.bias_steps is None else self.bias_steps.to(torch.float32) * _BIAS_UNIT

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[T, experts] float32 of tokens [T, model_dim], whatever the precision of the model."""
        with torch.autocast(x.device.type, enabled=False):
            exact = x.float()
            if self.training and self.policy.noise == "Jitter":
                exact = multiplicative_jitter(exact)
            return torch.nn.functional.linear(exact, self.wg.weight.float())

    def route(self, x: torch.Tensor, used_token: torch.Tensor | None = None) -> Routing:
        """The experts and weights of tokens [T, model_dim].

        Raises:
            RoutingError: a shape does not fit.
        """
        logits = self.logits(x)
        with torch.autocast(x.device.type, enabled=False):
            routing = route(logits, self.policy, training=self.training, used=used_token, bias=self.expert_bias)
        if self.training:
            self.load.add(routing)
        return routing

    def forward(self, input: torch.Tensor, used_token: torch.Tensor | None = None) -> DenseRouting:
        """``(l_aux, combine_weights [T, experts, capacity], dispatch_mask, exp_counts)``, as DeepSpeed's gate gives it.

        The layers of this wheel use `route`, whose tables do not grow with experts times capacity.
        """
        routing = self.route(input, used_token)
        return to_dense(routing, self.num_experts, self.ep_group, first_choices_first=self.policy.is_gshard)

    def update_bias(self, counts: torch.Tensor) -> None:
        """Moves the bias of experts below the mean load up and of those above it down, by `bias_update_rate`.

        Called on all ranks with the same counts.

        Args:
            counts: [experts] pairs that asked for each, over all ranks.
        """
        if self.bias_steps is not None:
            error = counts.sum() - counts * self.num_experts  # positive where a load is below the mean
            step = round(self.bias_update_rate / _BIAS_UNIT)
            self.bias_steps += (error.sign() * step).to(self.bias_steps)

    def extra_repr(self) -> str:
        """What the policy is."""
        return f"num_experts={self.num_experts}, {self.policy}"


def _check(num_experts: int, policy: RouterPolicy, rate: float) -> None:
    if policy.k > num_experts:
        raise MoeConfigError(f"k must be at most num_experts ({num_experts}), got {policy.k}")
    if policy.groups < 1 or num_experts % policy.groups:
        raise MoeConfigError(f"num_expert_groups must divide num_experts ({num_experts}), got {policy.groups}")
    most = num_experts // policy.groups * policy.groups_kept
    if not 1 <= policy.groups_kept <= policy.groups or policy.k > most:
        raise MoeConfigError(
            f"num_limited_groups must be 1 to num_expert_groups ({policy.groups}) and hold k ({policy.k}) experts, "
            f"got {policy.groups_kept} groups of {num_experts // policy.groups}"
        )
    if not (math.isfinite(rate) and rate >= 0):
        raise MoeConfigError(f"bias_update_rate must be 0 or more, got {rate}")
