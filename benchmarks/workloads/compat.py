"""Losses of one script, written for DeepSpeed, over stages and dtypes; runs under whichever package is installed.

torchrun --nproc-per-node 2 benchmarks/workloads/compat.py OUT.json all
torchrun --nproc-per-node 2 benchmarks/workloads/compat.py OUT.json "fp32, stage 0" ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deepspeed

STEPS, ACCUMULATED, ROWS, WIDTH, VOCABULARY, LENGTH = 12, 2, 4, 64, 96, 16


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(self.before(x)).unflatten(-1, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.after(x))))


class Model(nn.Module):
    """A language model of two blocks; returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(LENGTH))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.last(x))[:, :-1].float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def config(stage: int, bf16: bool) -> dict[str, Any]:
    """What scripts write, with every default that both packages have in common."""
    return {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": ACCUMULATED,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": bf16},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 3e-3, "warmup_num_steps": 4}},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }


def train(stage: int, bf16: bool) -> dict[str, list[float]]:
    """Losses of micro-batches, averaged over ranks, and norms of steps."""
    torch.manual_seed(42)
    model = Model()
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=list(model.parameters()), config=config(stage, bf16)
    )
    ranks, rank = deepspeed.comm.get_world_size(), deepspeed.comm.get_rank()
    generator = torch.Generator().manual_seed(7)
    losses, norms = [], []
    for micro_batch in range(STEPS * ACCUMULATED):
        first = torch.randint(VOCABULARY, (ROWS * ranks, 1), generator=generator)
        stride = torch.randint(1, 5, (ROWS * ranks, 1), generator=generator)
        ids = (first + stride * torch.arange(LENGTH)) % VOCABULARY
        loss = engine(ids[rank * ROWS : (rank + 1) * ROWS])
        engine.backward(loss)
        engine.step()
        mean = loss.detach().float().clone()
        deepspeed.comm.all_reduce(mean)
        losses.append(mean.item() / ranks)
        if (micro_batch + 1) % ACCUMULATED == 0:
            norm = engine.get_global_grad_norm()
            norms += [] if norm is None else [float(norm)]  # the original has none at stage 0 in fp32
    engine.destroy()
    return {"losses": losses, "norms": norms}


def main() -> None:
    """Every combination, one after another."""
    deepspeed.init_distributed(dist_backend="gloo")
    found = {}
    for dtype in ("fp32", "bf16"):
        for stage in range(4):
            name = f"{dtype}, stage {stage}"
            if "all" not in sys.argv[2:] and name not in sys.argv[2:]:
                continue
            try:
                found[name] = train(stage, dtype == "bf16")
            except Exception as error:  # noqa: BLE001  (the other package's refusals are a line of the table)
                found[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    if deepspeed.comm.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps({"version": deepspeed.__version__, "runs": found}))


if __name__ == "__main__":
    main()
