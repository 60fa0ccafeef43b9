"""Experts as stacked weights, all computed at once: one grouped product where modules would be called one by one.

Shapes: N rows, H features, F features between, E experts of this rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ds_core.ops import gated_activation_packed, grouped_matmul
from ds_moe.dispatch import Groups
from ds_moe.errors import MoeConfigError
from ds_moe.experts import mark

__all__ = ["GatedExperts", "MlpExperts", "StackedExperts"]

_GATED = ("silu", "gelu", "relu")


class StackedExperts(torch.nn.Module):
    """What such experts share. Every parameter has an expert a row of its dim 0.

    Args:
        num_experts: experts over all ranks.
        hidden_size: H.
        intermediate_size: F.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        for name, value in (
            ("num_experts", num_experts),
            ("hidden_size", hidden_size),
            ("intermediate_size", intermediate_size),
        ):
            if value < 1:
                raise MoeConfigError(f"{name} must be 1 or more, got {value}")
        self.num_experts: int = num_experts
        self.hidden_size: int = hidden_size
        self.intermediate_size: int = intermediate_size

    def __len__(self) -> int:
        return next(self.parameters()).shape[0]

    def reset_parameters(self) -> None:
        """Values as `torch.nn.Linear` draws them; an expert's depend on its number and on torch's seed only."""
        seed = int(torch.randint(2**62, (), device="cpu"))  # also where parameters are to have no values
        for place, parameter in enumerate(self.parameters()):
            fan_in = parameter.shape[-1] if parameter.dim() == 3 else self._fan_in_of_bias(place)
            bound = 1 / math.sqrt(fan_in)
            for number in range(0 if parameter.is_meta else self.num_experts):
                generator = torch.Generator().manual_seed(seed + number * 64 + place)
                drawn = torch.empty(parameter.shape[1:]).uniform_(-bound, bound, generator=generator)
                with torch.no_grad():
                    parameter[number].copy_(drawn)
            mark(parameter, None)

    def _fan_in_of_bias(self, place: int) -> int:
        return list(self.parameters())[place - 1].shape[-1]  # a bias comes after its weight

    def single(self) -> StackedExperts:
        """A new one of the same sizes with one expert: a dense layer, called without groups."""
        raise NotImplementedError

    def _groups(self, rows: torch.Tensor, groups: Groups | None) -> Groups:
        if groups is not None:
            return groups
        if len(self) != 1:
            raise MoeConfigError(f"rows for {len(self)} experts need groups; without them there must be one expert")
        return Groups((rows.shape[0],), torch.tensor([0, rows.shape[0]], device=rows.device))


class MlpExperts(StackedExperts):
    """``activation(x @ w1.T + b1) @ w2.T + b2`` for each expert.

    Args:
        num_experts, hidden_size, intermediate_size: sizes.
        activation: on [N, F], elementwise; exact GELU when left out.
        bias: whether there are b1 and b2.

    Attributes:
        w1: [E, F, H]. w2: [E, H, F]. b1: [E, F] and b2: [E, H], or None.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: Callable[[torch.Tensor], torch.Tensor] = torch.nn.functional.gelu,
        bias: bool = True,
    ) -> None:
        super().__init__(num_experts, hidden_size, intermediate_size)
        e, h, f = num_experts, hidden_size, intermediate_size
        self.activation: Callable[[torch.Tensor], torch.Tensor] = activation
        self.w1: torch.nn.Parameter = torch.nn.Parameter(torch.empty(e, f, h))
        self.b1: torch.nn.Parameter | None = torch.nn.Parameter(torch.empty(e, f)) if bias else None
        self.w2: torch.nn.Parameter = torch.nn.Parameter(torch.empty(e, h, f))
        self.b2: torch.nn.Parameter | None = torch.nn.Parameter(torch.empty(e, h)) if bias else None
        self.reset_parameters()

    def single(self) -> MlpExperts:
        """A dense layer of these sizes."""
        return MlpExperts(
            1, self.hidden_size, self.intermediate_size, activation=self.activation, bias=self.b1 is not None
        )

    def forward(self, rows: torch.Tensor, groups: Groups | None = None) -> torch.Tensor:
        """[N, H] of rows [N, H] sorted by expert."""
        groups = self._groups(rows, groups)
        between = _product(rows, self.w1, self.b1, groups)
        return _product(self.activation(between), self.w2, self.b2, groups)


class GatedExperts(StackedExperts):
    """``(activation(x @ gate.T) * (x @ up.T)) @ down.T`` for each expert, as in most present models. No biases.

    Args:
        num_experts, hidden_size, intermediate_size: sizes.
        activation: ``"silu"``, ``"gelu"`` or ``"relu"``.

    Attributes:
        gate_up: [E, 2 F, H], gate above up. down: [E, H, F].
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, *, activation: str = "silu") -> None:
        super().__init__(num_experts, hidden_size, intermediate_size)
        if activation not in _GATED:
            raise MoeConfigError(f"activation must be one of {', '.join(_GATED)}, got {activation!r}")
        e, h, f = num_experts, hidden_size, intermediate_size
        self.activation: str = activation
        self.gate_up: torch.nn.Parameter = torch.nn.Parameter(torch.empty(e, 2 * f, h))
        self.down: torch.nn.Parameter = torch.nn.Parameter(torch.empty(e, h, f))
        self.reset_parameters()

    def single(self) -> GatedExperts:
        """A dense layer of these sizes."""
        return GatedExperts(1, self.hidden_size, self.intermediate_size, activation=self.activation)

    def forward(self, rows: torch.Tensor, groups: Groups | None = None) -> torch.Tensor:
        """[N, H] of rows [N, H] sorted by expert."""
        groups = self._groups(rows, groups)
        between = gated_activation_packed(_product(rows, self.gate_up, None, groups), self.activation)
        return _product(between, self.down, None, groups)


def _product(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, groups: Groups) -> torch.Tensor:
    if torch.is_autocast_enabled(x.device.type):  # which knows torch's products only
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w, bias = x.to(dtype), w.to(dtype), None if bias is None else bias.to(dtype)
    y = grouped_matmul(x, w, groups.offsets, transposed=True)
    if bias is None:
        return y
    sizes = groups.offsets[1:] - groups.offsets[:-1]
    return y + bias.repeat_interleave(sizes, 0, output_size=x.shape[0])
