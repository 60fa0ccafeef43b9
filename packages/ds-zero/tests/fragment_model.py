"""A model with all kinds of parameters, an engine and a plain loop over it, and their values by name."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 7
LR = 0.0625
KEYS = ("exp_avg", "exp_avg_sq")
STAGES = [0, 1, 2, 3]
ONE_UNIT = {"module_granularity_threshold": 10_000}
"""Modules in one bucket, long enough that sums over more than two ranks are added in rank order."""
ALL = ((0, 0), (1, 0), (2, 0), (3, 0), (3, 50))
"""Stages, and how small a parameter must be to stay whole."""


class Zoo(nn.Module):
    """Odd sizes, a module used twice, a frozen and an unused one, a scalar, an empty parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(WIDTH, 13)
        self.twice = nn.Linear(13, 13)
        self.frozen = nn.Linear(13, 13)
        self.unused = nn.Linear(3, 5)
        self.head = nn.Linear(13, 3)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.embed(x))))))
        return self.head(self.frozen(h)) * self.gain


def data(rank: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    return [torch.randn(4, WIDTH, generator=generator) for _ in range(count)]


def loss_of(model, x: torch.Tensor) -> torch.Tensor:
    return model(x).float().square().mean()


def make(stage: int, *, native=True, whole=0, accumulation=1, **config):
    import ds_core

    model = Zoo()
    params = {"lr": LR, "weight_decay": 0.125, **({} if native else {"torch_adam": True})}
    zero = {"stage": stage, "param_persistence_threshold": whole, **config.pop("zero", {})}
    engine = ds_core.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 0.0,
            "optimizer": {"type": "AdamW", "params": params},
            "zero_optimization": zero,
            **config,
        },
    )[0]
    return engine, model


class Plain:
    """One process with the data of all ranks: each rank's gradient by itself, added in rank order, then averaged."""

    def __init__(self, world: int, native: bool = False) -> None:
        from ds_core.optim.op_adam import OpAdam

        self.model = Zoo()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        kind, options = (OpAdam, {}) if native else (torch.optim.AdamW, {"fused": True})
        self.optimizer = kind(self.trained, lr=LR, weight_decay=0.125, **options)
        self.rows = [data(rank, 10) for rank in range(world)]
        self.at = 0

    def backward(self) -> None:
        totals = None
        for rows in self.rows:
            grads = torch.autograd.grad(loss_of(self.model, rows[self.at]), self.trained, allow_unused=True)
            totals = (
                grads if totals is None else [None if g is None else t + g for t, g in zip(totals, grads, strict=True)]
            )
        for parameter, total in zip(self.trained, totals, strict=True):
            parameter.grad = None if total is None else total / len(self.rows)
        self.at += 1

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def values(self) -> dict[str, torch.Tensor | None]:
        found = {}
        for name, parameter in self.model.named_parameters():
            found[name, "param"] = parameter.detach().clone()
            found[name, "grad"] = None if parameter.grad is None else parameter.grad.clone()
            for key in KEYS:
                state = self.optimizer.state.get(parameter, {}).get(key)
                if state is None and parameter.requires_grad:
                    state = torch.zeros_like(parameter)
                found[name, key] = None if state is None else state.detach().clone()
        return found


def values(model) -> dict[str, torch.Tensor | None]:
    from ds_core.utils import safe_get_full_fp32_param, safe_get_full_grad, safe_get_full_optimizer_state

    found = {}
    for name, parameter in model.named_parameters():
        found[name, "param"] = safe_get_full_fp32_param(parameter)
        found[name, "grad"] = safe_get_full_grad(parameter)
        for key in KEYS:
            found[name, key] = safe_get_full_optimizer_state(parameter, key)
    return found


def differing(left: dict, right: dict) -> list:
    """Keys under which two sets of values are not the same bits in the same shape."""
    assert left.keys() == right.keys()
    return [
        key
        for key, a in left.items()
        if (a is None) != (right[key] is None) or (a is not None and not torch.equal(a, right[key]))
    ]


def local_values(model) -> dict[str, torch.Tensor | None]:
    from ds_core.utils import safe_get_local_fp32_param, safe_get_local_grad, safe_get_local_optimizer_state

    found = {}
    for name, parameter in model.named_parameters():
        found[name, "param"] = safe_get_local_fp32_param(parameter)
        found[name, "grad"] = safe_get_local_grad(parameter)
        for key in KEYS:
            found[name, key] = safe_get_local_optimizer_state(parameter, key)
    return found


def no_gain(found: dict) -> dict:
    """Without the parameter whose bucket is so short that gloo adds it in an order of its own."""
    return {key: value for key, value in found.items() if key[0] != "gain"}


CHOSEN = ("embed.weight", "unused.bias", "gain", "empty", "head.bias")


def replacement(parameter: torch.Tensor) -> torch.Tensor:
    return (torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) + 1) / 64


def set_and_step(stage, what, **settings):
    import torch.distributed as dist

    from ds_core.utils import (
        safe_set_full_fp32_param,
        safe_set_full_grad,
        safe_set_full_optimizer_state,
        safe_update_full_grad_vectorized,
    )

    engine, model = make(stage, **settings)
    rows = iter(data(dist.get_rank(), 10))
    names = dict(model.named_parameters())
    chosen = [p for name, p in names.items() if name in CHOSEN]
    for _ in range(2):
        if what == "param":
            for parameter in [*chosen, model.frozen.weight]:
                safe_set_full_fp32_param(parameter, replacement(parameter))
        if what == "state":
            for parameter in chosen:
                for key in KEYS:
                    safe_set_full_optimizer_state(parameter, replacement(parameter), key)
        engine.backward(loss_of(engine, next(rows).to(model.gain.dtype)))
        if what == "grad":
            for parameter in chosen:
                safe_set_full_grad(parameter, replacement(parameter))
        if what == "update":
            safe_update_full_grad_vectorized(list(model.parameters()), lambda g, p: g * 2 if p.dim() > 1 else None)
            safe_update_full_grad_vectorized([model.gain], lambda g: g.mul_(4) and None)
        engine.step()
    found = values(model)
    engine.destroy()
    return found
