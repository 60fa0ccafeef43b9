"""`MoE`: a layer with many experts of which each token passes a few, over one rank or many."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from ds_moe.errors import MoeConfigError
from ds_moe.experts import Experts, ExpertSource, make_expert, mark
from ds_moe.gate import TopKGate
from ds_moe.mixture import Mixture
from ds_moe.routing import RouterPolicy
from ds_moe.stacked import StackedExperts

__all__ = ["MoE", "MoEOutput"]

logger = logging.getLogger(__name__)


class MoEOutput(NamedTuple):
    """What `MoE` returns.

    Args:
        output: shaped like what went in.
        l_aux: scalar to add to the loss, times a coefficient of the caller's (0.01 in Switch Transformers).
        exp_counts: [num_experts] int64: pairs of this rank's tokens that asked for each expert.
    """

    output: torch.Tensor
    l_aux: torch.Tensor
    exp_counts: torch.Tensor


class MoE(Mixture):
    """A mixture of experts, made whole on every rank; an engine leaves each rank with its share of the experts.

    Args:
        hidden_size: features of a token.
        expert: a module, copied for each expert; a callable that makes one, called for each under a seed of its own;
            or `MlpExperts` or `GatedExperts`, all experts in stacked weights.
        num_experts: experts over all ranks.
        ep_size: ranks that share the experts; divides `num_experts` and the ranks of the job. All layers agree on it.
        k: experts a token.
        capacity_factor, eval_capacity_factor, min_capacity: how many tokens an expert takes; see `RouterPolicy`.
        use_residual: every token also passes an expert of its own, and two learned shares add both up.
        noisy_gate_policy: None, ``"Jitter"`` or ``"RSample"``.
        drop_tokens: False serves every token.
        use_rts: for k = 1: of an expert's tokens above its capacity keep a random choice.
        use_tutel: not used: rows are placed and moved by ds-core's ops; says so.
        enable_expert_tensor_parallelism: must be False.
        top2_2nd_expert_sampling: for k = 2: the second expert is sampled in training.
        drop_policy: which tokens are dropped; None as the paper for that k does.
        balancing: ``"aux"``, ``"bias"`` or ``"none"``.
        bias_update_rate: for balancing by bias.
        z_loss_coef: of the router z-loss in `l_aux`.
        score, normalise, route_scale: how weights are made of logits.
        num_expert_groups, num_limited_groups: groups of experts, and how many of them a token may choose from.
        shared_expert: a module that every token passes, added to what its experts give; computed while tokens travel.

    Raises:
        MoeConfigError: a setting that cannot be used.

    Source: N. Shazeer et al., "Outrageously Large Neural Networks", 2017; residual: S. Rajbhandari et al.,
    "DeepSpeed-MoE", 2022, section 4.1 (PR-MoE); shared expert: D. Dai et al., "DeepSeekMoE", 2024, section 3.2.
    """

    def __init__(
        self,
        hidden_size: int,
        expert: ExpertSource | StackedExperts,
        num_experts: int = 1,
        ep_size: int = 1,
        k: int = 1,
        capacity_factor: float = 1.0,
        eval_capacity_factor: float = 1.0,
        min_capacity: int = 4,
        use_residual: bool = False,
        noisy_gate_policy: str | None = None,
        drop_tokens: bool = True,
        use_rts: bool = True,
        use_tutel: bool = False,
        enable_expert_tensor_parallelism: bool = False,
        top2_2nd_expert_sampling: bool = True,
        *,
        drop_policy: str | None = None,
        balancing: str = "aux",
        bias_update_rate: float = 1e-3,
        z_loss_coef: float = 0.0,
        score: str = "softmax",
        normalise: bool | None = None,
        route_scale: float = 1.0,
        num_expert_groups: int = 1,
        num_limited_groups: int = 1,
        shared_expert: torch.nn.Module | None = None,
    ) -> None:
        _check(num_experts, ep_size, use_tutel, enable_expert_tensor_parallelism)
        policy = RouterPolicy(
            k=k,
            capacity_factor=capacity_factor,
            eval_capacity_factor=eval_capacity_factor,
            min_capacity=min_capacity,
            drop_tokens=drop_tokens,
            noise=noisy_gate_policy,
            random_selection=use_rts,
            sample_second=top2_2nd_expert_sampling,
            drop_policy=drop_policy,
            balancing=balancing,
            z_loss_coef=z_loss_coef,
            score=score,
            normalise=normalise,
            scale=route_scale,
            groups=num_expert_groups,
            groups_kept=num_limited_groups,
        )
        gate = TopKGate(hidden_size, num_experts, policy=policy, bias_update_rate=bias_update_rate)
        super().__init__(gate, _experts(expert, num_experts), ep_size)
        for parameter in self.experts.parameters():
            mark(parameter, self.expert_group_name)
        self.shared_expert: torch.nn.Module | None = shared_expert
        self.mlp: torch.nn.Module | None = None
        self.coefficient: torch.nn.Linear | None = None
        if use_residual:
            self.mlp = expert.single() if isinstance(expert, StackedExperts) else make_expert(expert, None)
            for parameter in self.mlp.parameters():
                parameter.allreduce = True  # type: ignore[attr-defined]
            self.coefficient = torch.nn.Linear(hidden_size, 2)

    @property
    def expert_group_name(self) -> str:
        """What parameters of experts have in their attribute `group_name`."""
        return f"ep_size_{self.ep_size}"

    def forward(self, hidden_states: torch.Tensor, used_token: torch.Tensor | None = None) -> MoEOutput:
        """Tokens through their experts. Called on all ranks that share them.

        Args:
            hidden_states: [..., hidden_size].
            used_token: [...] with zeros for tokens that shall pass no expert; None for all.

        Raises:
            RoutingError: a shape does not fit.
        """
        always: list[torch.Tensor] = []
        mixed = self.mix(hidden_states, used_token, lambda: always.extend(self._passed_by_all(hidden_states)))
        output = mixed.output
        if self.coefficient is not None:
            share = self.coefficient(hidden_states).softmax(-1)
            output = output * share[..., 0:1] + always.pop(0) * share[..., 1:]
        for each in always:
            output = output + each
        return MoEOutput(output, mixed.routing.l_aux, mixed.routing.counts)

    def _passed_by_all(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What the residual expert and the shared expert make of every token, those of them that there are."""
        made = []
        if self.mlp is not None:
            flat = self.mlp(x.reshape(-1, x.shape[-1])) if isinstance(self.mlp, StackedExperts) else self.mlp(x)
            made.append((flat[0] if isinstance(flat, tuple) else flat).view(x.shape))
        if self.shared_expert is not None:
            made.append(self.shared_expert(x))
        return made


def _experts(expert: ExpertSource | StackedExperts, num_experts: int) -> Experts | StackedExperts:
    if not isinstance(expert, StackedExperts):
        return Experts(expert, num_experts)
    if expert.num_experts != num_experts:
        raise MoeConfigError(
            f"num_experts is {num_experts}, and expert is a {type(expert).__name__} of {expert.num_experts}; "
            "make them the same"
        )
    return expert


def _check(num_experts: int, ep_size: int, use_tutel: bool, tensor_parallel: bool) -> None:
    if num_experts < 1 or ep_size < 1 or num_experts % ep_size:
        raise MoeConfigError(
            f"num_experts must be a multiple of ep_size, got num_experts={num_experts} and ep_size={ep_size}"
        )
    if tensor_parallel:
        raise MoeConfigError(
            "enable_expert_tensor_parallelism cuts experts over tensor-parallel ranks, which needs ds-tensor; it is "
            "not in this version. Set it to False, and divide experts over ranks with ep_size"
        )
    if use_tutel:
        logger.warning("use_tutel has no effect: tokens are placed and moved by the ops of ds-core; take it out")
