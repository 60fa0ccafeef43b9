"""The form of experts that are stacked in one module: which tensors it has, how they lie, and what goes between them.

Since release 5, transformers keeps the experts of a layer in one module with a tensor for all of them, called with
tokens, the numbers of their experts and weights. What differs between families (gated or not, rows or columns first,
biases, a norm at the end) is told by the names and shapes of the tensors and by attributes of the module.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["StackedForm", "form_of"]


@dataclass(frozen=True, slots=True)
class StackedForm:
    """How a module of stacked experts computes.

    Args:
        experts: how many there are.
        first: name of the tensor that rows meet first, ``gate_up_proj`` or ``up_proj``; the last is ``down_proj``.
        transposed: tensors are [experts, out, in], as the weights of linear layers, and not [experts, in, out].
        first_bias, last_bias: names of the biases [experts, out], or None.
        has_norm: the module's ``post_expert_norm`` is applied to what an expert gives.
    """

    experts: int
    first: str
    transposed: bool
    first_bias: str | None
    last_bias: str | None
    has_norm: bool

    @property
    def is_gated(self) -> bool:
        """Whether half of what the first product gives is multiplied with the other half, activated."""
        return self.first == "gate_up_proj"

    @property
    def names(self) -> list[str]:
        """Names of the tensors with a slice for each expert."""
        return [name for name in (self.first, "down_proj", self.first_bias, self.last_bias) if name is not None]


def form_of(module: nn.Module) -> StackedForm | str | None:
    """The form of `module`; why it cannot be computed, where it looks like stacked experts; None where it does not."""
    own = dict(module.named_parameters(recurse=False))
    first = next((name for name in ("gate_up_proj", "up_proj") if name in own), None)
    if first is None or "down_proj" not in own or own[first].dim() != 3 or own["down_proj"].dim() != 3:
        return None
    biases = [name if name in own else None for name in (f"{first}_bias", "down_proj_bias")]
    strange = sorted(own.keys() - {first, "down_proj", *biases})
    if strange:
        return f"it has tensors that are not known: {', '.join(strange)}"
    experts = own[first].shape[0]
    if any(tensor.shape[0] != experts for tensor in own.values()):
        return f"its tensors do not all begin with {experts} experts"
    if _arguments(module) != 3:
        return "its forward does not take tokens, experts and weights"
    is_gated = first == "gate_up_proj"
    if not callable(getattr(module, "_apply_gate" if is_gated else "act_fn", getattr(module, "act_fn", None))):
        return "it has no activation (act_fn or _apply_gate)"
    transposed = _is_transposed(own[first].shape, own["down_proj"].shape, 2 if is_gated else 1, module)
    if transposed is None:
        return f"the shapes of its tensors do not fit: {tuple(own[first].shape)} and {tuple(own['down_proj'].shape)}"
    has_norm = bool(getattr(module, "has_post_expert_norm", False))
    return StackedForm(experts, first, transposed, biases[0], biases[1], has_norm)


def _arguments(module: nn.Module) -> int:
    """How many positional arguments the forward of the module's class takes."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) - 1


def _is_transposed(first: torch.Size, last: torch.Size, halves: int, module: nn.Module) -> bool | None:
    """Whether both tensors have outputs before inputs; the module's word decides where both readings fit."""
    readings = {
        True: first[1] == halves * last[2] and first[2] == last[1],
        False: first[2] == halves * last[1] and first[1] == last[2],
    }
    said = not getattr(module, "is_transposed", False)  # transformers calls the layout of linear layers not transposed
    return said if readings[said] else None
