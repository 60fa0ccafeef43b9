"""Which experts each token goes to, with which weights, and what that costs the gate: from logits alone.

Shapes: T tokens, K experts a token, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ds_core.errors import did_you_mean
from ds_core.ops import top_k_gate
from ds_moe.capacity import capacity_of, counts_of, keep
from ds_moe.errors import MoeConfigError, RoutingError
from ds_moe.losses import load_balance_loss, z_loss
from ds_moe.noise import gumbel_rsample

__all__ = ["BALANCING", "DROP_POLICIES", "NOISE", "RouterPolicy", "Routing", "route"]

NOISE = (None, "Jitter", "RSample")
BALANCING = ("aux", "bias", "none")
DROP_POLICIES = (None, "probs", "position")
_SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True, slots=True)
class RouterPolicy:
    """How a gate chooses. Checked when it is made.

    Args:
        k: experts a token.
        capacity_factor, eval_capacity_factor: capacity of an expert in training and in evaluation, in even shares of
            the pairs of tokens and choices.
        min_capacity: least capacity, in tokens.
        drop_tokens: pairs above the capacity go nowhere; False serves all of them.
        noise: ``"Jitter"`` multiplies what goes into the gate, ``"RSample"`` samples experts instead of taking the
            best, in training; None neither.
        random_selection: of an expert's tokens above its capacity, keep a random choice (k = 1, in training).
        sample_second: of two experts the second is sampled (k = 2, in training).
        drop_policy: ``"probs"`` keeps an expert's most probable tokens, ``"position"`` its first; None as the paper for
            that k does: by position or at random for one, first choices before second ones for two, else ``"probs"``.
        balancing: ``"aux"`` by an auxiliary loss, ``"bias"`` by a bias on the choice that follows the loads,
            ``"none"`` not at all.
        z_loss_coef: of the router z-loss, which is added to the auxiliary loss.
        score: what makes scores of logits, ``"softmax"`` or ``"sigmoid"``.
        normalise: weights of a token's experts are divided by their sum; None for k above 1.
        scale: multiplies the weights at last.
        groups, groups_kept: experts are in so many groups, and a token may choose from so many of them.

    Raises:
        MoeConfigError: a value, or two together, that cannot be used.
    """

    k: int = 1
    capacity_factor: float = 1.0
    eval_capacity_factor: float = 1.0
    min_capacity: int = 4
    drop_tokens: bool = True
    noise: str | None = None
    random_selection: bool = True
    sample_second: bool = True
    drop_policy: str | None = None
    balancing: str = "aux"
    z_loss_coef: float = 0.0
    score: str = "softmax"
    normalise: bool | None = None
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1

    def __post_init__(self) -> None:
        for name, value, known in (
            ("noisy_gate_policy", self.noise, NOISE),
            ("balancing", self.balancing, BALANCING),
            ("drop_policy", self.drop_policy, DROP_POLICIES),
            ("score", self.score, _SCORES),
        ):
            if value not in known:
                near = did_you_mean(str(value), [str(each) for each in known])
                raise MoeConfigError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.{near}")
        for name, number in (
            ("capacity_factor", self.capacity_factor),
            ("eval_capacity_factor", self.eval_capacity_factor),
            ("min_capacity", self.min_capacity),
            ("z_loss_coef", self.z_loss_coef),
        ):
            if not number >= 0:
                raise MoeConfigError(f"{name} must be 0 or more, got {number}")
        if self.k < 1:
            raise MoeConfigError(f"k must be 1 or more, got {self.k}")
        if self.balancing == "bias" and self.noise == "RSample":
            raise MoeConfigError(
                "balancing='bias' chooses by scores plus a bias, and noisy_gate_policy='RSample' by a sample; "
                "take noisy_gate_policy out, or set balancing to 'aux'"
            )

    @property
    def is_gshard(self) -> bool:
        """Whether of two choices the first ones are placed first, and they alone count in the loss."""
        return self.k == 2 and self.drop_policy is None

    def samples(self, training: bool) -> bool:
        """Whether some experts are sampled, not taken in the order of scores."""
        second = self.k == 2 and self.sample_second and self.balancing != "bias" and self.groups == 1
        return training and (self.noise == "RSample" or second)

    def capacity(self, tokens: int, num_experts: int, training: bool) -> int:
        """Pairs that an expert takes of those of `tokens` tokens."""
        factor = self.capacity_factor if training else self.eval_capacity_factor
        return capacity_of(tokens * self.k, num_experts, factor, self.min_capacity)


class Routing(NamedTuple):
    """What a gate decided.

    Args:
        experts: [T, K] int64; -1 for a pair that was dropped, or a token that is not used.
        weights: [T, K] float32, of the pairs that go somewhere; 0 for others.
        l_aux: scalar: what the balancing adds to the loss, before a coefficient of the caller's.
        counts: [E] int64: pairs that asked for each expert, dropped ones too.
        capacity: pairs that each expert takes; None for all.
        probabilities: [T, E] float32, rows that add up to 1.
        balance: scalar, the load-balancing loss, also where it is not trained by.
        z: scalar, the router z-loss, likewise.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    l_aux: torch.Tensor
    counts: torch.Tensor
    capacity: int | None
    probabilities: torch.Tensor
    balance: torch.Tensor
    z: torch.Tensor


def route(
    logits: torch.Tensor,
    policy: RouterPolicy,
    *,
    training: bool,
    used: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> Routing:
    """The experts of each token and their weights; differentiable in `logits` through weights and losses.

    Weights of a token are normalised over the experts that had room for it.

    Args:
        logits: [T, E]; everything is computed in float32.
        policy: how to choose.
        training: noise, random choices and the training capacity apply.
        used: [T], zeros for tokens that shall go nowhere and not count; None for all.
        bias: [E] float32, added to scores to choose, with balancing by bias.

    Raises:
        RoutingError: a shape does not fit, or there are fewer experts than a token chooses.

    Source: k = 1: W. Fedus et al., "Switch Transformers", 2021; random choice among too many: as random token selection
    in Y. Kim et al., "Scalable and Efficient MoE Training for Multitask Multilingual Models", 2021, section 3.3;
    k = 2: D. Lepikhin et al., "GShard", 2020, algorithm 1; bias: L. Wang et al., "Auxiliary-Loss-Free Load Balancing
    Strategy for Mixture-of-Experts", 2024.
    """
    _check(logits, policy, used)
    exact_TE = logits.float()
    tokens, num_experts = exact_TE.shape
    experts_TK, scores_TE = _choose(exact_TE, policy, training, bias)
    if used is not None:
        experts_TK = experts_TK.masked_fill(~used.reshape(tokens, 1).to(torch.bool), -1)
    counts_E = counts_of(experts_TK, num_experts)
    probabilities_TE = scores_TE
    if policy.score == "sigmoid":
        probabilities_TE = scores_TE / scores_TE.sum(-1, keepdim=True).clamp(min=_tiny())
    capacity = policy.capacity(tokens, num_experts, training) if policy.drop_tokens else None
    balance = load_balance_loss(probabilities_TE, _fractions(experts_TK, counts_E, policy))
    z = z_loss(exact_TE)
    chosen_TK = scores_TE.gather(1, experts_TK.clamp(min=0))
    if capacity is not None:
        kept_TK = _kept(experts_TK, chosen_TK, num_experts, capacity, policy, training)
        experts_TK = experts_TK.masked_fill(~kept_TK, -1)
    weights_TK = chosen_TK * (experts_TK >= 0)
    if policy.k > 1 if policy.normalise is None else policy.normalise:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True).clamp(min=_tiny())
    if policy.scale != 1.0:
        weights_TK = weights_TK * policy.scale
    l_aux = balance if policy.balancing == "aux" else torch.zeros_like(balance)
    if policy.z_loss_coef:
        l_aux = l_aux + policy.z_loss_coef * z
    return Routing(experts_TK, weights_TK, l_aux, counts_E, capacity, probabilities_TE, balance, z)


def _choose(
    logits_TE: torch.Tensor, policy: RouterPolicy, training: bool, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token, in the order of choice, and the scores of all."""
    if not policy.samples(training):
        gate = top_k_gate(
            logits_TE,
            policy.k,
            score=policy.score,
            bias=bias,
            groups=policy.groups,
            groups_kept=policy.groups_kept,
            group_score="top2" if bias is not None and logits_TE.shape[1] >= 2 * policy.groups > 2 else "max",
        )
        return gate.experts, gate.scores
    scores_TE = logits_TE.softmax(-1) if policy.score == "softmax" else logits_TE.sigmoid()
    noisy_TE = logits_TE.detach() + gumbel_rsample(logits_TE.shape, logits_TE.device)
    if policy.noise == "RSample":
        return top_k_gate(noisy_TE, policy.k, groups=policy.groups, groups_kept=policy.groups_kept).experts, scores_TE
    first_T1 = top_k_gate(logits_TE.detach(), 1).experts
    second_T1 = top_k_gate(noisy_TE.scatter(1, first_T1, float("-inf")), 1).experts
    return torch.cat((first_T1, second_T1), 1), scores_TE


def _kept(
    experts_TK: torch.Tensor,
    chosen_TK: torch.Tensor,
    num_experts: int,
    capacity: int,
    policy: RouterPolicy,
    training: bool,
) -> torch.Tensor:
    if policy.k == 1 and policy.drop_policy is None and policy.random_selection and training:
        priority_TK = torch.rand(chosen_TK.shape, device=chosen_TK.device)
        return keep(experts_TK, num_experts, capacity, priority_TK=priority_TK)
    if policy.drop_policy == "probs" or (policy.drop_policy is None and policy.k > 2):
        return keep(experts_TK, num_experts, capacity, priority_TK=chosen_TK.detach())
    return keep(experts_TK, num_experts, capacity, first_choices_first=policy.is_gshard)


def _fractions(experts_TK: torch.Tensor, counts_E: torch.Tensor, policy: RouterPolicy) -> torch.Tensor:
    """[E] share of the choices that count for the loss."""
    tokens, num_experts = experts_TK.shape[0], counts_E.shape[0]
    if policy.is_gshard:
        return counts_of(experts_TK[:, :1], num_experts) / max(tokens, 1)
    return counts_E / max(tokens * policy.k, 1)


def _tiny() -> float:
    return torch.finfo(torch.float32).eps


def _check(logits: torch.Tensor, policy: RouterPolicy, used: torch.Tensor | None) -> None:
    if logits.dim() != 2:
        raise RoutingError(f"logits must be [tokens, experts], got {tuple(logits.shape)}; flatten batch and sequence")
    if logits.shape[1] < policy.k:
        raise RoutingError(
            f"k={policy.k} experts a token need as many experts, got {logits.shape[1]}; lower k or raise num_experts"
        )
    if used is not None and used.numel() != logits.shape[0]:
        raise RoutingError(
            f"used_token must have one value for each of the {logits.shape[0]} tokens, got shape {tuple(used.shape)}"
        )
