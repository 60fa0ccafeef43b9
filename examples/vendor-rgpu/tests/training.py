"""A small model and the ways the tests train it: on the host by plain torch, and by engines on each rank."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ds_core.testing import run_ranks

STEPS, ROWS, WIDTH = 3, 4, 6
ADAMW = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3}  # eps: a gradient near 0 shall not decide by its sign alone

Run = tuple[list[float], dict[str, torch.Tensor]]
"""Losses, and weights as host tensors."""


class Net(nn.Module):
    """Two layers and a norm, with the same weights each time; `forward` gives the loss."""

    def __init__(self, hidden: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(WIDTH, hidden), nn.LayerNorm(hidden)
        self.second = nn.Linear(hidden, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.norm(self.first(x)))).square().mean()


def rows(step: int, rank: int) -> torch.Tensor:
    """What a rank trains on at a step, on the host."""
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))


def by_plain_torch(ranks: int = 1) -> Run:
    """On the host, with the batches of all ranks as one; losses are those of the first rank's rows."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses = []
    for step in range(STEPS):
        each = [model(rows(step, rank)) for rank in range(ranks)]
        (torch.stack(each).sum() / ranks).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(each[0].item())
    return losses, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def make(accelerator: str, zero: Mapping[str, Any], hidden: int = 10) -> Any:
    """An engine; the model is made on the host and moved."""
    import ds_core

    config = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_clipping": 0.05,
        "optimizer": {"type": "AdamW", "params": ADAMW},
        "zero_optimization": {"param_persistence_threshold": 0, **zero},
    }
    return ds_core.initialize(model=Net(hidden), config=config, accelerator=accelerator)[0]


def advance(engine: Any, steps: int) -> list[float]:
    """Losses of this rank."""
    from ds_core import comm

    losses = []
    for step in range(engine.global_steps, engine.global_steps + steps):
        loss = engine(rows(step, comm.get_rank()).to(engine.device))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    """Full weights as host tensors."""
    parameters = dict(engine.module.named_parameters())
    with engine.gathered(list(parameters.values())):
        return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def by_engines(accelerator: str, zeros: Sequence[Mapping[str, Any]]) -> list[Run]:
    """On this rank, with each of `zeros` as the section ``zero_optimization``."""
    results = []
    for zero in zeros:
        engine = make(accelerator, zero)
        assert {parameter.device.type for parameter in engine.module.parameters()} == {accelerator}
        results.append((advance(engine, STEPS), weights_of(engine)))
        engine.destroy()
    return results


def on_ranks(fn: Any, world: int, *args: Any) -> list[Any]:
    """`fn` on ranks that make the process group themselves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    return run_ranks(fn, world, *args, init=False, env=meeting, timeout_s=500.0)


def differing(left: Run, right: Run, *, atol: float = 1e-5) -> list[str]:
    """What differs by more than rounding: names of weights, or ``"losses"``."""
    found = [name for name, weight in right[1].items() if not torch.allclose(left[1][name], weight, rtol=0, atol=atol)]
    near = all(abs(ours - theirs) <= atol for ours, theirs in zip(left[0], right[0], strict=True))
    return found if near else ["losses", *found]
