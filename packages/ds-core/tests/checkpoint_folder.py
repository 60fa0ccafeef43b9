"""A small engine in mixed precision, for tests of what stands in its checkpoints."""

from __future__ import annotations

import torch
from torch import nn

import ds_core


def build():
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
    }
    return ds_core.initialize(model=nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), config=config)[0]


def step(engine) -> None:
    engine.backward(engine(torch.randn(2, 6).bfloat16()).float().square().mean())
    engine.step()
