"""What tests of config keys share: a small engine, and weights after some steps of it."""

from __future__ import annotations

import torch
from torch import nn

import ds_core
from ds_core.testing import run_ranks


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.spare = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(2, 2)
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x: torch.Tensor, use_spare: bool = True) -> torch.Tensor:
        out = self.b(torch.tanh(self.a(x))) + self.shift.to(x.dtype)
        return self.spare(out) if use_spare else out


def build(**config):
    base = {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "SGD", "params": {"lr": 1.0}},
    }
    return ds_core.initialize(model=Model(), config={**base, **config})[0]


def train(engine, steps: int = 2, factor: float = 1.0) -> torch.Tensor:
    """Weights after some steps, flattened."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps * engine.gradient_accumulation_steps()):
        x = torch.randn(3, 6, generator=generator).to(engine.module.a.weight.dtype)
        engine.backward((engine(x).float() ** 2).mean() * factor)
        engine.step()
    return torch.cat([p.detach().float().view(-1) for p in engine.module.parameters()])


def after(steps: int = 2, factor: float = 1.0, **config) -> torch.Tensor:
    return train(build(**config), steps, factor)


def changes_weights(key: str, value, base: dict | None = None, **kwargs) -> None:
    assert not torch.equal(after(**(base or {}), **kwargs), after(**_set(base or {}, key, value), **kwargs))


def _set(base: dict, key: str, value) -> dict:
    head, *rest = key.split(".")
    if not rest:
        return {**base, head: value}
    return {**base, head: _set(dict(base.get(head, {})), ".".join(rest), value)}


def ranked(changes: dict, kind: str) -> object:
    """Runs on each rank: what the wire saw, or the weights."""
    from ds_core import comm

    comm.reset()
    engine = build(**changes)
    if kind == "weights":
        return train(engine, 1)
    if kind == "overflow":
        # Gradients near the largest fp16 number: their sum over ranks overflows unless they are divided first.
        engine.backward(engine.module.b.bias.sum() * 40000.0 + engine(torch.zeros(3, 6).half()).float().sum() * 0)
        engine.step()
        return engine.was_step_applied()
    train(engine, 1)
    rows = [row for row in comm.report().rows if row.scope in ("gradients", "parameters")]
    return {(row.op, row.scope): (row.calls, row.bytes_payload) for row in rows}


def wire(**changes) -> dict:
    return run_ranks(ranked, 2, changes, "wire")[0]
