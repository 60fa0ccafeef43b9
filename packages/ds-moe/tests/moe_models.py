"""Small models with experts, and plain PyTorch to train them the long way round."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ds_moe import MlpExperts, MoE

__all__ = ["EXPERTS", "FEATURES", "Ffn", "Net", "batches", "loss_of"]

FEATURES, EXPERTS = 16, 4


class Ffn(nn.Module):
    """A feed-forward expert."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(FEATURES, 32)
        self.down = nn.Linear(32, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """A layer, one with experts as modules, one with stacked experts, a layer.

    Args:
        ep_size: ranks that share the experts of both.
        settings: of both.
    """

    def __init__(self, ep_size: int = 1, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        given = {"k": 2, "drop_tokens": False, "top2_2nd_expert_sampling": False, **settings}
        self.first = nn.Linear(FEATURES, FEATURES)
        self.moe = MoE(FEATURES, Ffn, EXPERTS, ep_size, **given)
        self.stacked = MoE(FEATURES, MlpExperts(EXPERTS, FEATURES, 32), EXPERTS, ep_size, **given)
        self.last = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs, and the auxiliary losses added up."""
        x = torch.tanh(self.first(x))
        made, one, _ = self.moe(x)
        x = x + made
        made, two, _ = self.stacked(x)
        return self.last(x + made), one + two


def batches(count: int, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets."""
    generator = torch.Generator().manual_seed(3)
    shape = (rows, 3, FEATURES)
    return [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)) for _ in range(count)]


def loss_of(made: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Of the task, and a share of the auxiliary ones."""
    return nn.functional.mse_loss(made[0], target) + 0.01 * made[1]
