"""A small model with everything that makes a checkpoint hard to reshard, and what an engine holds of it."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

import ds_core
from ds_core import comm
from ds_core.checkpoint import CheckpointReader
from ds_core.checkpoint.saving.saver import collect

ROWS = 60


class Model(nn.Module):
    """Odd sizes, tied weights, frozen and unused parameters, buffers of two kinds, a scalar.

    `steady`: what it computes of a sample depends neither on the other samples of a micro-batch nor on chance.
    """

    def __init__(self, steady: bool = False) -> None:
        super().__init__()
        self.rate = 0.0 if steady else 0.1
        generator = torch.Generator().manual_seed(5)
        self.embed = nn.Embedding(11, 7)
        self.up = nn.Linear(7, 13)
        self.norm = nn.LayerNorm(13) if steady else nn.BatchNorm1d(13)
        self.down = nn.Linear(13, 7)
        self.scale = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(3, 5)
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.arange(3.0))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = x + self.down(torch.relu(self.norm(self.up(x)))) * self.scale
        x = nn.functional.dropout(self.frozen(x), self.rate, self.training)
        return nn.functional.cross_entropy(self.head(x).float(), (tokens + 1) % 11)


def build(stage: int, *, steady: bool = False, **changes: Any) -> Any:
    """An engine over `Model` with two parameter groups, a schedule, and data; 4 samples a rank and micro-batch."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    model = Model(steady)
    decayed = {id(p) for p in model.parameters() if p.dim() > 1}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": 0.1},
        {"params": [p for p in trained if id(p) not in decayed], "lr": 3e-3},
    ]
    zero = {"stage": stage, "param_persistence_threshold": 8, "reduce_bucket_size": 100}
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "train_batch_size": 4 * ranks,
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 9, "warmup_max_lr": 0.01}},
        "bf16": {"enabled": True},
        "seed": 17,
        "checkpoint": {"asynchronous": False},
        **changes,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, **changes.get("adam", {})}},
        "zero_optimization": {**zero, **changes.get("zero_optimization", {})},
    }
    config.pop("adam", None)
    data = TensorDataset(torch.randint(0, 11, (ROWS,), generator=torch.Generator().manual_seed(3)))
    engine = ds_core.initialize(model=model, model_parameters=groups, training_data=data, config=config)[0]
    random.seed(99)
    return engine


def train(engine: Any, steps: int) -> list[float]:
    """Losses of some steps over the engine's own data."""
    return [float(engine.train_batch(x for (x,) in engine._batches(None))) for _ in range(steps)]


def tensors(folder: str, tag: str) -> dict[str, torch.Tensor]:
    """All of a checkpoint, in full."""
    reader = CheckpointReader(_folder(folder, tag))
    return {key: reader.full(key) for key in reader.keys()}  # noqa: SIM118


def values(folder: str, tag: str) -> dict[str, Any]:
    """What a checkpoint has besides tensors, without what depends on the number of ranks."""
    reader = CheckpointReader(_folder(folder, tag))
    names = ("optimizer", "optimizer_scalars", "lr_scheduler", "loss_scale", "data")
    return comparable({name: reader.value(name) for name in names} | {"counters": dict(reader.counters)})


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Without the number of ranks, and without the step that a piece counts for the furthest of its parameters."""
    data = {k: v for k, v in (found.get("data") or {}).items() if k != "data_parallel_size"}
    scalars = {name: {"taken": row["taken"]} for name, row in (found.get("optimizer_scalars") or {}).items()}
    return {**found, "data": data, "optimizer_scalars": scalars}


def _folder(folder: str, tag: str) -> Any:
    from pathlib import Path

    return Path(folder) / tag


def differences(engine: Any, expected: dict[str, torch.Tensor], told: dict[str, Any]) -> list[str]:
    """Where what all ranks would save, or this rank computes with, is not what is expected, bit for bit."""
    plan = collect(engine, exclude_frozen=False)
    wrong: list[str] = []
    numels: dict[str, int] = {}
    unused = [name for name, row in told["optimizer_scalars"].items() if row["taken"] == 0]
    idle = {f"optimizer/{state}/{name}" for name in unused for state in ("exp_avg", "exp_avg_sq")}
    for fragment in plan.fragments:
        if fragment.key.startswith("random/"):
            continue
        if fragment.key in idle:  # some optimizers have states before the first update, others make them then
            wrong += [f"{fragment.key} is not zero"] * bool(fragment.values().count_nonzero())
            continue
        numels[fragment.key] = numels.get(fragment.key, 0) + fragment.stop - fragment.start
        if fragment.key not in expected:
            wrong.append(f"{fragment.key} is there")
            continue
        part = expected[fragment.key].view(-1)[fragment.start : fragment.stop]
        found = fragment.values()
        if tuple(expected[fragment.key].shape) != fragment.shape or not same(part, found):
            wrong.append(f"{fragment.key}[{fragment.start}:{fragment.stop}]")
    everyone = comm.gather_json([numels, plan.values]) if dist.is_initialized() else [[numels, plan.values]]
    total: dict[str, int] = {}
    merged: dict[str, Any] = {"optimizer_scalars": {}}
    for row, vals in everyone:
        total = {key: total.get(key, 0) + row.get(key, 0) for key in {**total, **row}}
        merged = {**vals, **merged, "optimizer_scalars": {**merged["optimizer_scalars"], **vals["optimizer_scalars"]}}
    wanted = {key: value.numel() for key, value in expected.items() if not key.startswith("random/") and value.numel()}
    wanted = {key: numel for key, numel in wanted.items() if key not in idle}
    if total != wanted:
        wrong.append(f"elements held {set(total.items()) ^ set(wanted.items())}")
    now = comparable({name: merged.get(name) for name in told if name != "counters"} | {"counters": engine.counters()})
    wrong += [f"value {name}: {now[name]} != {told[name]}" for name in told if now[name] != told[name]]
    for name, tensor in engine.module_state_dict().items():
        key = "model/" + {"head.weight": "embed.weight"}.get(name, name)
        if not same(expected[key], tensor):
            wrong.append(f"working {name}")
    return wrong


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal to the last bit, and of one dtype."""
    return left.dtype == right.dtype and torch.equal(left.reshape(-1), right.detach().cpu().reshape(-1))
