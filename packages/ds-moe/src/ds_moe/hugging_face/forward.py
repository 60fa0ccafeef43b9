"""What the forwards that replace a model's own have in common: the block they are for, and counts of choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ds_moe.load import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ds_moe.dispatch import Dispatch
    from ds_moe.hugging_face.find import Block

__all__ = ["ExpertsForward", "forwards_in"]


class ExpertsForward:
    """A forward that was put in the place of a module's own.

    Args:
        block: the block it is of.
        counted: the module that shows how often experts were chosen.
        dispatch: sends rows to their experts.
        use_grouped: one grouped product for all experts of this rank; else a product for each.

    Attributes:
        block: see above.
        step_counts: how often each expert was chosen in training since this was last set to zeros, [experts] int64;
            None counts nothing. A forward that is recomputed in backward counts again.
    """

    def __init__(self, block: Block, counted: Any, dispatch: Dispatch, *, use_grouped: bool) -> None:
        self.block: Block = block
        self._counted: Any = counted
        self._load: Load = Load(dispatch.num_experts)
        self._counted.load = self._load  # where the part that reports loads looks for it
        self.step_counts: torch.Tensor | None = None
        self._dispatch: Dispatch = dispatch
        self._use_grouped: bool = use_grouped

    def count(self, chosen_TK: torch.Tensor) -> None:
        """Notes what this rank's tokens chose: in ``_last_counts`` of the module, [experts] int64, and for the step.

        Args:
            chosen_TK: [T, K] numbers of experts, -1 for none.
        """
        with torch.no_grad():
            asked = chosen_TK.flatten() + 1  # 0 is none; bincount would make the host wait for its largest value
            counts = asked.new_zeros(self._dispatch.num_experts + 1).scatter_add_(0, asked, torch.ones_like(asked))[1:]
            self._counted._last_counts = counts
            if self.block.module.training:
                self._load.add_counts(counts)
            if self.step_counts is not None and self.block.module.training:
                self.step_counts = self.step_counts + counts


def forwards_in(model: nn.Module) -> Iterator[ExpertsForward]:
    """The replaced forwards of a model, in its order."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, ExpertsForward):
            yield forward
