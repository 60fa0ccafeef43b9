"""States of an engine leave a device with memory of its own, and come back as they were."""

from __future__ import annotations

import gc

import torch

import ds_core
from ds_core import utils
from ds_core.accelerator import select


def test_the_device_gets_its_memory_back_between_phases() -> None:
    openbox = select("openbox")
    with openbox.device(0):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 64))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
        "bf16": {"enabled": True},
    }
    engine = ds_core.initialize(model=model, config=config, accelerator="openbox")[0]
    x = torch.randn(4, 64, dtype=torch.bfloat16).to(engine.device)
    for _ in range(2):
        engine.backward(engine(x).float().square().mean())
        engine.step()
    before = utils.safe_get_full_fp32_param(model[0].weight).cpu()
    numel = sum(p.numel() for p in model.parameters())
    held = torch.openbox.memory_allocated()
    torch.openbox.reset_traffic()
    engine.offload_states()
    gc.collect()
    left = torch.openbox.memory_allocated()
    assert held - left > 0.95 * 14 * numel, (held, left, 14 * numel)
    assert torch.openbox.traffic().to_host_bytes >= 14 * numel
    assert utils.get_state_devices(engine, "hp_params") == {torch.device("cpu")}
    engine.reload_states()
    assert torch.openbox.memory_allocated() == held, (held, torch.openbox.memory_allocated())
    assert utils.get_state_devices(engine, "hp_params") == {engine.device}
    assert torch.equal(utils.safe_get_full_fp32_param(model[0].weight).cpu(), before)
    engine.backward(engine(x).float().square().mean())
    engine.step()
