"""Models of the training cases, and the ways they are trained: by torch alone, and by the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ds_core.testing import parity

__all__ = [
    "ROWS",
    "Gpt",
    "Trained",
    "batches",
    "config",
    "engine_for",
    "loss_of",
    "make",
    "parameters_of",
    "plain",
    "step",
]

VOCABULARY, WIDTH, HEADS, LENGTH, ROWS = 31, 16, 2, 9, 4

ADAMW: Mapping[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-4}
"""With this eps an element whose gradient is rounding alone (a key's bias) is not moved by it."""


class _Block(nn.Module):
    """Attention and a feed-forward layer, each on a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.down = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x_BTW: torch.Tensor) -> torch.Tensor:
        b, t, _ = x_BTW.shape
        q, k, v = (part.view(b, t, HEADS, -1).transpose(1, 2) for part in self.qkv(self.norms[0](x_BTW)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTW = x_BTW + self.out(mixed.transpose(1, 2).reshape(b, t, WIDTH))
        result: torch.Tensor = x_BTW + self.down(functional.gelu(self.up(self.norms[1](x_BTW))))
        return result


class Gpt(nn.Module):
    """Two blocks and a head that shares the embedding's weight; `forward` gives logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = nn.Sequential(_Block(), _Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.blocks(self.tokens(ids_BT) + self.places)))
        return logits


@dataclass
class Trained:
    """What a run leaves, on the host: a loss a step, gradient norms, and the last parameters in float32."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    params: dict[str, torch.Tensor] = field(default_factory=dict)


def make(name: str, device: torch.device) -> nn.Module:
    """The model on `device`, with the same weights everywhere. It is made there, so that tied weights stay tied."""
    kind = Gpt if name == "gpt" else type(parity.MODELS[name]())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4321)
        weights = kind().state_dict()
    with device:
        model = kind()
    model.load_state_dict(weights)
    return model


def batches(name: str, steps: int, rows: int, *, seed: int = 7) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(input, target) of every step, on the host."""
    if name != "gpt":
        return parity.make_data(steps, rows, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(VOCABULARY, (steps, rows, LENGTH + 1), generator=generator)
    return [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in drawn]


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits, or the mean squared error."""
    if target.dtype == torch.int64:
        return functional.cross_entropy(output.float().flatten(0, -2), target.flatten())
    return functional.mse_loss(output.float(), target.float())


def plain(
    name: str,
    device: torch.device,
    data: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    pieces: int = 1,
    clip: float | None = None,
) -> Trained:
    """Trains by torch alone, with AdamW; each batch in `pieces` whose gradients are averaged."""
    model, done = make(name, device), Trained()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, **ADAMW)
    for x, y in data:
        loss_sum = 0.0
        for x_part, y_part in zip(x.to(device).chunk(pieces), y.to(device).chunk(pieces), strict=True):
            loss = loss_of(model(x_part), y_part)
            (loss / pieces).backward()
            loss_sum += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, float("inf") if clip is None else clip)
        optimizer.step()
        optimizer.zero_grad()
        done.losses.append(loss_sum / pieces)
        done.norms.append(float(norm))
    done.params = {key: p.detach().float().cpu() for key, p in model.named_parameters()}
    return done


def config(rows: int, **more: Any) -> dict[str, Any]:
    """The engine's config for a micro-batch of `rows`; clipping is off unless `more` says otherwise."""
    return {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "AdamW", "params": dict(ADAMW)},
        **more,
    }


def engine_for(id: str, name: str, settings: Mapping[str, Any]) -> Any:
    """An engine of the model on this rank's device."""
    import ds_core
    from ds_core.accelerator import select

    model = make(name, select(id).device())
    return ds_core.initialize(model=model, config=dict(settings), accelerator=id)[0]


def step(engine: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """One optimizer step on this rank's share of a batch; the mean loss of its micro-batches."""
    count = engine.gradient_accumulation_steps()
    total = 0.0
    for x_part, y_part in zip(x.to(engine.device).chunk(count), y.to(engine.device).chunk(count), strict=True):
        if x_part.dtype.is_floating_point:
            x_part = x_part.to(next(engine.module.parameters()).dtype)
        loss = loss_of(engine(x_part), y_part)
        engine.backward(loss)
        engine.step()
        total += loss.item()
    return total / int(count)


def parameters_of(engine: Any) -> dict[str, torch.Tensor]:
    """Whole parameters by name, in float32 on the host. Called on all ranks."""
    named = dict(engine.module.named_parameters())
    with engine.gathered(named.values()):
        return {key: parameter.detach().float().cpu().clone() for key, parameter in named.items()}
