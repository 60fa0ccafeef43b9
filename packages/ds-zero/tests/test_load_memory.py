"""Loading takes the memory of the states it makes, and a buffer: peak resident memory of real ranks."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import ds_core
from ds_core.testing import run_ranks

WIDTH, LAYERS = 1024, 24
PARAMETERS = LAYERS * WIDTH * (WIDTH + 1)
MIB = 1 << 20
BUFFER_BYTES = 16 * MIB
SLACK_BYTES = 8 * MIB
"""Page tables, the manifest, and what the allocator leaves open."""


PACKING_BYTES = 16 * MIB
"""What encoding takes besides; small tensors that come and go, between which the heap keeps holes."""


class Growth(NamedTuple):
    """Bytes of resident memory above those before a load: of its peak, and the optimizer's states it made."""

    peak: int
    states: int


def build(stage: int, mode: dict[str, Any]):
    torch.manual_seed(0)
    params = {"lr": 1e-3, **mode.get("params", {})}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": {"stage": stage},
        "checkpoint": {"asynchronous": False},
        "bf16": {"enabled": mode.get("bf16", False)},
    }
    return ds_core.initialize(model=nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))), config=config)[0]


def save(folder: str, mode: dict[str, Any]) -> None:
    engine = build(0, mode)
    x = torch.ones(1, WIDTH, dtype=torch.bfloat16 if mode.get("bf16") else torch.float32)
    engine.backward(engine(x).float().square().mean())
    engine.step()
    engine.save_checkpoint(folder, tag="t")


def resident(key: str) -> int:
    """Bytes that ``/proc/self/status`` says."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {key}")


def states_bytes(engine) -> int:
    found = engine.optimizer.state.values()
    return sum(v.numel() * v.element_size() for state in found for v in state.values() if isinstance(v, torch.Tensor))


def load_twice(folder: str, stage: int, mode: dict[str, Any]) -> list[Growth]:
    engine = build(stage, mode)
    gc.collect()
    growths = []
    for _ in range(2):
        had = states_bytes(engine)
        Path("/proc/self/clear_refs").write_text("5")  # starts a new peak
        before = resident("VmRSS")
        engine.load_checkpoint(folder, tag="t")
        growths.append(Growth(resident("VmHWM") - before, states_bytes(engine) - had))
    return growths


MODES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": True},
    "torch": {"bf16": True, "params": {"torch_adam": True}},
    "packed": {"params": {"state_bits": 8}},
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a stretch of time")
@pytest.mark.parametrize("mode", MODES)
def test_a_load_takes_the_shard_and_a_buffer(tmp_path, mode):
    run_ranks(save, 1, str(tmp_path), MODES[mode])
    allowed = BUFFER_BYTES + SLACK_BYTES + (PACKING_BYTES if mode == "packed" else 0)
    for ranks, stage in ((1, 0), (2, 3)):
        for first, second in run_ranks(load_twice, ranks, str(tmp_path), stage, MODES[mode]):
            assert first.states >= (2 if mode == "packed" else 8) * PARAMETERS // ranks
            assert first.peak <= first.states + allowed, (ranks, stage)
            assert second.states == 0
            assert second.peak <= allowed, (ranks, stage)
