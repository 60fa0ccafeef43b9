"""Does a replaced forward give what the module itself gave? Asked with a few tokens, while an engine is built.

What a router does with its logits, or a family with the tensors of its experts, cannot be seen from outside. A wrong
guess would train another model without an error, so the first block of each class is run before and after.
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
    """What a block with a list of experts, or a module of stacked ones, gives for a few tokens before it is changed.

    Args:
        block: its values are here.

    Attributes:
        gave_logits: the answer was a pair, of hidden states and the router's logits.

    Raises:
        ConversionError: it gives something else than hidden states, alone or in such a pair.
    """

    def __init__(self, block: Block) -> None:
        self._block: Block = block
        self._module: nn.Module = block.module if block.form is None else block.experts
        self._arguments: tuple[torch.Tensor, ...] = _for_list(block) if block.form is None else _for_stack(block)
        answer = self._run()
        self.gave_logits: bool = block.form is None and isinstance(answer, tuple) and len(answer) == 2
        wanted = answer[0] if self.gave_logits else answer
        if not isinstance(wanted, torch.Tensor) or wanted.shape != self._arguments[0].shape:
            raise ConversionError(
                f"{block.title} does not give hidden states of the shape of its input, alone or with the router's "
                f"logits, but {type(answer).__name__}; its forward cannot be replaced"
            )
        self._wanted: torch.Tensor = wanted

    def compare(self) -> None:
        """Runs the module again. Called on all ranks that share its experts.

        Raises:
            ConversionError: it gives something else now.
        """
        answer = self._run()
        found = (answer[0] if self.gave_logits else answer).float()
        wanted = self._wanted.float()
        gap = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
        if gap <= _TOLERANCE.get(self._wanted.dtype, 1e-3):
            return
        if self._block.form is None:
            raise ConversionError(
                f"{self._block.title} gave other values before its experts were replaced, by {gap:.3g} of the largest: "
                "the configuration describes another router or other experts. Set expert_parallel.top_k, score_func, "
                "score_apply, route_norm, route_scale, num_expert_groups, has_shared_experts and expert_w1 to "
                "expert_w3 as its forward has them"
            )
        raise ConversionError(
            f"the experts of {self._block.title} ({type(self._module).__name__}) gave other values before their "
            f"forward was replaced, by {gap:.3g} of the largest: they do more than their tensors and attributes say "
            f"({self._block.form}). They cannot be converted; leave them out with expert_parallel.moe_layer_pattern"
        )

    def _run(self) -> Any:
        was_training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad(), torch.autocast(self._arguments[0].device.type, enabled=False):
                return self._module(*self._arguments)
        finally:
            self._module.train(was_training)


def _for_list(block: Block) -> tuple[torch.Tensor, ...]:
    """Hidden states [1, tokens, features]."""
    own = [] if block.router is None else list(block.router.parameters())
    weight = next(parameter for parameter in (*own, *block.module.parameters()) if parameter.dim() == 2)
    x = torch.randn(1, _TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    return (x.to(weight),)


def _for_stack(block: Block) -> tuple[torch.Tensor, ...]:
    """Tokens, two experts of each, weights."""
    last: torch.Tensor = block.experts.get_parameter("down_proj")
    features = last.shape[1 if block.form is not None and block.form.transposed else 2]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, features, generator=generator)
    weights, chosen = torch.rand(_TOKENS, block.count, generator=generator).topk(min(2, block.count))
    return x.to(last), chosen.to(last.device), weights.to(last.device)
