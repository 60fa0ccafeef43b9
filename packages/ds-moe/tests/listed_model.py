"""A model of one's own, with blocks that have a list of experts, as checkpoints name them one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

WIDTH, EXPERTS, TOP_K = 8, 4, 2


class Expert(nn.Module):
    """Gated: ``second(silu(first(x)) * third(x))``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.third = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12, bias=True)
        self.second = nn.Linear(12, WIDTH)
        self.act_fn = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.act_fn(self.first(x)) * self.third(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A router, a list of experts and what the options ask for; a loop over experts."""

    def __init__(
        self,
        *,
        sigmoid: bool = False,
        normed: bool = True,
        scale: float = 1.0,
        before: bool = False,
        groups: int | None = None,
        shared: bool = False,
        gives_logits: bool = False,
        own_choice: bool = False,
        names: tuple[str, str] = ("gate", "experts"),
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = locals().copy()
        for name in ("self", "__class__"):
            self.options.pop(name, None)
        router: nn.Module = Chooser() if own_choice else nn.Linear(WIDTH, EXPERTS, bias=False)
        self.add_module(names[0], router)
        self.add_module(names[1], nn.ModuleList(Expert() for _ in range(EXPERTS)))
        if shared:
            self.shared_expert, self.shared_expert_gate = Expert(), nn.Linear(WIDTH, 1)

    def forward(self, hidden: torch.Tensor) -> Any:
        o = self.options
        x = hidden.flatten(0, 1)
        answer = self.get_submodule(o["names"][0])(x)
        if o["own_choice"]:
            chosen, weights = answer
        else:
            scores = answer.sigmoid() if o["sigmoid"] else answer.softmax(-1)
            limited = scores
            if o["groups"] is not None:
                grouped = scores.view(len(x), o["groups"], -1)
                best = grouped.topk(2, -1)[0].sum(-1).argmax(-1)
                mask = torch.arange(o["groups"]) == best[:, None]
                limited = (grouped * mask[..., None]).flatten(1)
            chosen = limited.topk(TOP_K, -1)[1]
            weights = scores.gather(1, chosen)
            weights = (weights / weights.sum(-1, keepdim=True) if o["normed"] else weights) * o["scale"]
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.get_submodule(o["names"][1])):
            token, slot = (chosen == number).nonzero(as_tuple=True)
            weight = weights[token, slot, None]
            made = expert(x[token] * weight) if o["before"] else expert(x[token]) * weight
            y = y.index_add(0, token, made)
        if o["shared"]:
            y = y + self.shared_expert_gate(x).sigmoid() * self.shared_expert(x)
        y = y.view_as(hidden)
        return (y, answer) if o["gives_logits"] else y


class Chooser(nn.Module):
    """A router that gives experts and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, chosen = (x @ self.weight.t()).tanh().topk(TOP_K, -1)
        return chosen, weights


class Model(nn.Module):
    """Two blocks with residuals; the mean square as loss."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_experts_per_tok=TOP_K, choices=TOP_K, num_experts=EXPERTS, routed=EXPERTS)
        self.layers = nn.ModuleList(Block(**options) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            y = layer(x)
            x = x + (y[0] if isinstance(y, tuple) else y)
        return x.square().mean()


def rows(count: int, step: int = 0) -> torch.Tensor:
    """[count, 3, WIDTH], the same everywhere."""
    return torch.randn(count, 3, WIDTH, generator=torch.Generator().manual_seed(50 + step))
