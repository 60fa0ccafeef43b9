"""Does a replaced forward give what the block itself gave? Asked with a few tokens, while an engine is built.

What a router does with its logits cannot be seen from outside, so the configuration says it; a wrong word would train
another model without an error. The first block of each class is run before and after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ds_moe.errors import ConversionError

if TYPE_CHECKING:
    from ds_moe.hugging_face.find import Block

__all__ = ["Probe"]

_TOKENS = 8
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference, as a part of the largest value."""


class Probe:
    """What a block gives for a few tokens, before it is changed.

    Args:
        block: its values are here.

    Raises:
        ConversionError: it gives something else than hidden states, alone or with the router's logits.
    """

    def __init__(self, block: Block) -> None:
        weight = next(p for p in (*_parameters(block.router), *block.module.parameters()) if p.dim() == 2)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, _TOKENS, weight.shape[1], generator=generator)
        self._x: torch.Tensor = x.to(device=weight.device, dtype=weight.dtype)
        answer = self._run(block)
        is_pair = isinstance(answer, tuple) and len(answer) == 2
        wanted = answer[0] if is_pair else answer
        if not isinstance(wanted, torch.Tensor) or wanted.shape != x.shape:
            raise ConversionError(
                f"{block.title} does not give hidden states of the shape of its input, alone or with the router's "
                f"logits, but {type(answer).__name__}; its forward cannot be replaced"
            )
        self.gave_logits: bool = is_pair
        self._wanted: torch.Tensor = wanted

    def compare(self, block: Block) -> None:
        """Runs the block again. Called on all ranks that share its experts.

        Raises:
            ConversionError: it gives something else now.
        """
        answer = self._run(block)
        found = (answer[0] if self.gave_logits else answer).float()
        wanted = self._wanted.float()
        gap = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
        if not gap <= _TOLERANCE.get(self._x.dtype, 1e-3):
            raise ConversionError(
                f"{block.title} gave other values before its experts were replaced, by {gap:.3g} of the largest: the "
                "configuration describes another router or other experts. Set expert_parallel.top_k, score_func, "
                "score_apply, route_norm, route_scale, num_expert_groups, has_shared_experts and expert_w1 to "
                "expert_w3 as its forward has them"
            )

    def _run(self, block: Block) -> Any:
        was_training = block.module.training
        block.module.eval()
        try:
            with torch.no_grad():
                return block.module(self._x)
        finally:
            block.module.train(was_training)


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())
