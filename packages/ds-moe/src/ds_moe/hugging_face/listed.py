"""Blocks with a list of experts: their forward replaced by ours, and of the list what this rank has.

Experts stay modules under their numbers over all ranks, so checkpoints have the names that the model gives them.

Shapes: T tokens of this rank, K experts a token, H features, N rows that arrive on this rank.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from ds_moe.errors import ConversionError
from ds_moe.hugging_face.forward import ExpertsForward
from ds_moe.hugging_face.scores import Choice, Scores
from ds_moe.hugging_face.stacked import product

if TYPE_CHECKING:
    from ds_moe.config import ExpertParallel
    from ds_moe.dispatch import Dispatch, Groups
    from ds_moe.hugging_face.find import Block

__all__ = ["ListedForward"]

_ACTIVATIONS = ("act_fn", "activation", "act")


class ListedForward(ExpertsForward):
    """The forward of a block with a list of experts.

    Args:
        block: has the router, and the list whole.
        model: its config may say how many experts a token takes.
        section: says how the router decides and what the parts are called.
        dispatch: sends rows to their experts.

    Raises:
        ConversionError: there is no router, or a name does not fit.
    """

    def __init__(self, block: Block, model: nn.Module, section: ExpertParallel, dispatch: Dispatch) -> None:
        names = (section.expert_w1, section.expert_w2, section.expert_w3)
        use_grouped = section.use_grouped_mm and section.expert_w1 is not None
        super().__init__(block, block.module, dispatch, use_grouped=use_grouped)
        if block.router is None:
            raise ConversionError(
                f"{block.title} has no child named {section.router_pattern!r}, which decides about experts; its "
                f"children are {', '.join(name for name, _ in block.module.named_children())}; set "
                "expert_parallel.router_pattern"
            )
        self.returns_logits: bool = False
        self.local: list[nn.Module] = list(block.experts.children())
        self._names: tuple[str | None, str | None, str | None] = names
        self._scores: Scores = Scores.of(block, model, section)
        self._is_pre: bool = section.score_apply == "pre"
        self._shared, self._shared_gate = _shared(block, section)
        for name in names:
            if name is not None and any(not isinstance(getattr(one, name, None), nn.Linear) for one in self.local):
                raise ConversionError(
                    f"an expert of {block.title} has no linear layer {name!r}; its children are "
                    f"{', '.join(n for n, _ in self.local[0].named_children())}; set expert_parallel.expert_w1, "
                    "expert_w2 and expert_w3 to names of these, or take them out: experts then run as they are"
                )

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the block gives: of the shape of `hidden_states`; with logits, where the block gives these too."""
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        router: Any = self.block.router
        choice = self._scores.choose(router(x_TH), self._dispatch.num_experts)
        self.count(choice.experts_TK)
        y_TH = self._routed(x_TH, choice)
        if self._shared is not None:
            extra_TH = self._shared(x_TH)
            y_TH = y_TH + (extra_TH if self._shared_gate is None else self._shared_gate(x_TH).sigmoid() * extra_TH)
        y = y_TH.view_as(hidden_states)
        return (y, choice.logits_TE) if self.returns_logits else y

    def _routed(self, x_TH: torch.Tensor, choice: Choice) -> torch.Tensor:
        chosen_TK, weights_TK, _ = choice
        if not self._is_pre:
            return self._dispatch.run(x_TH, chosen_TK, weights_TK, self._compute)
        scaled = (x_TH[:, None] * weights_TK[..., None].to(x_TH.dtype)).flatten(0, 1)
        ones = torch.ones_like(weights_TK).reshape(-1, 1)
        made = self._dispatch.run(scaled, chosen_TK.reshape(-1, 1), ones, self._compute)
        result: torch.Tensor = made.unflatten(0, chosen_TK.shape).sum(1)
        return result

    def _compute(self, rows_NH: torch.Tensor, groups: Groups) -> torch.Tensor:
        if not self._use_grouped:  # every expert is called, so that whoever gathers its parameters sees the same calls
            runs = zip(self.local, rows_NH.split(groups.sizes), strict=True)
            return torch.cat([expert(run) for expert, run in runs])
        first, last, other = self._names
        inner = self._activated(self._product(rows_NH, first, groups))
        if other is not None:
            inner = inner * self._product(rows_NH, other, groups)
        return self._product(inner, last, groups)

    def _product(self, rows: torch.Tensor, name: str | None, groups: Groups) -> torch.Tensor:
        layers: list[Any] = [getattr(expert, str(name)) for expert in self.local]
        weight = torch.stack([layer.weight for layer in layers])
        bias = None if layers[0].bias is None else torch.stack([layer.bias for layer in layers])
        return product(rows, weight, bias, groups, transposed=True, use_grouped=True)

    def _activated(self, inner: torch.Tensor) -> torch.Tensor:
        own = (getattr(self.local[0], name, None) for name in _ACTIVATIONS)
        result: torch.Tensor = next((one for one in own if callable(one)), F.silu)(inner)
        return result


def _shared(block: Block, section: ExpertParallel) -> tuple[Any, Any]:
    """The shared experts of a block and their gate; None where it has none."""
    children = dict(block.module.named_children())
    gates = [name for name in children if re.fullmatch(section.shared_experts_gate_pattern, name)]
    shared = [name for name in children if re.fullmatch(section.shared_experts_pattern, name) and name not in gates]
    if section.has_shared_experts and not shared:
        raise ConversionError(
            f"expert_parallel.has_shared_experts is true, but {block.title} has no child named "
            f"{section.shared_experts_pattern!r}; its children are {', '.join(children)}; set "
            "expert_parallel.shared_experts_pattern"
        )
    if not shared or section.has_shared_experts is False:
        return None, None
    return children[shared[0]], children[gates[0]] if gates else None
