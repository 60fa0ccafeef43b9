"""Which experts the tokens of a block with a list of experts go to, by what the configuration says of its router.

Shapes: T tokens, K experts a token, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ds_moe.errors import ConversionError, RoutingError

if TYPE_CHECKING:
    from ds_moe.config import ExpertParallel
    from ds_moe.hugging_face.find import Block

__all__ = ["Choice", "Scores"]


class Choice(NamedTuple):
    """What a router decided: experts [T, K] int64, their weights [T, K]; and its logits [T, E], if it gave these."""

    experts_TK: torch.Tensor
    weights_TK: torch.Tensor
    logits_TE: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Scores:
    """From logits to experts and weights. The fields are keys of ``expert_parallel``."""

    top_k: int | None
    function: str
    is_normed: bool
    scale: float
    groups: int | None
    limited_groups: int | None

    @classmethod
    def of(cls, block: Block, model: nn.Module, section: ExpertParallel) -> Scores:
        """As `section` says; ``top_k`` may stand in the model's config or in the block."""
        return cls(
            section.top_k or _stated(block, model, section.top_k_attr),
            section.score_func,
            section.route_norm,
            section.route_scale,
            section.num_expert_groups,
            section.num_limited_groups,
        )

    def choose(self, answer: Any, experts: int) -> Choice:
        """The choice in a router's answer: made here of logits [T, E]; as it is, where it holds experts and weights.

        Raises:
            RoutingError: the answer is neither.
        """
        if isinstance(answer, tuple | list):
            return _own_choice(answer)
        logits_TE = answer.reshape(-1, answer.shape[-1])
        if logits_TE.shape[-1] != experts or self.top_k is None:
            raise RoutingError(
                f"the router gives {logits_TE.shape[-1]} logits for {experts} experts, of which a token takes "
                f"{self.top_k}; set expert_parallel.router_pattern and expert_parallel.top_k"
            )
        scores_TE = logits_TE.float().softmax(-1) if self.function == "softmax" else logits_TE.float().sigmoid()
        _, chosen_TK = self._limited(scores_TE).topk(self.top_k, dim=-1)
        weights_TK = scores_TE.gather(1, chosen_TK)
        if self.is_normed:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return Choice(chosen_TK, weights_TK * self.scale, answer)

    def _limited(self, scores_TE: torch.Tensor) -> torch.Tensor:
        """Scores, those outside of the best groups below all others."""
        if self.groups is None or self.limited_groups is None:
            return scores_TE
        by_group: torch.Tensor = scores_TE.unflatten(-1, (self.groups, -1))
        best = (
            by_group.topk(min(2, by_group.shape[-1]), dim=-1).values.sum(-1).topk(self.limited_groups, dim=-1).indices
        )
        is_open = torch.zeros(by_group.shape[:-1], dtype=torch.bool, device=scores_TE.device).scatter(1, best, True)
        limited: torch.Tensor = by_group.masked_fill(~is_open[..., None], -1.0).flatten(-2)
        return limited


def _own_choice(answer: tuple[Any, ...] | list[Any]) -> Choice:
    tensors = [item for item in answer if isinstance(item, torch.Tensor)]
    chosen = next((item for item in tensors if not item.is_floating_point()), None)
    weights = next(
        (item for item in tensors if chosen is not None and item.is_floating_point() and item.shape == chosen.shape),
        None,
    )
    if chosen is None or weights is None:
        raise RoutingError(
            "the router gives neither logits nor experts with weights of one shape, but "
            f"{[tuple(item.shape) for item in tensors]}; set expert_parallel.router_pattern to the module that does"
        )
    width = chosen.shape[-1]
    return Choice(chosen.reshape(-1, width), weights.reshape(-1, width), None)


def _stated(block: Block, model: nn.Module, attribute: str) -> int | None:
    for owner in (getattr(model, "config", None), block.module, block.router):
        value = getattr(owner, attribute, None)
        if isinstance(value, int):
            if not 1 <= value <= block.count:
                raise ConversionError(
                    f"expert_parallel.top_k_attr {attribute!r} says {value} experts a token, but {block.title} has "
                    f"{block.count}; name another attribute or set expert_parallel.top_k"
                )
            return value
    return None
