"""accelerate, unmodified, through this wheel: its plugin with and without a config of DeepSpeed's, and its launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hf_jobs import BATCH, STEPS, Sequences, clean_state, ds_config, llama

from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks
EXACT = 2e-5


def run(plugin, out: Path | None = None, *, steps: int = STEPS, resume: Path | None = None) -> dict:
    """A training loop as accelerate's guide writes it; `plugin` None is plain torch on one process."""
    from accelerate import Accelerator
    from accelerate.utils import DummyOptim, DummyScheduler

    accelerator = Accelerator(gradient_accumulation_steps=2, deepspeed_plugin=plugin, cpu=True)
    model = llama()
    config = plugin.deepspeed_config if plugin is not None else {}
    parameters = list(model.parameters())
    make = DummyOptim if "optimizer" in config else torch.optim.AdamW
    optimizer = make(parameters, lr=1e-2, weight_decay=0.1)
    if "scheduler" in config:
        scheduler = DummyScheduler(optimizer, warmup_num_steps=1, total_num_steps=STEPS * accelerator.num_processes)
    else:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, accelerator.num_processes, gamma=0.5)
    loader = torch.utils.data.DataLoader(Sequences(), batch_size=BATCH // accelerator.num_processes)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    if resume is not None:
        accelerator.load_state(str(resume))
    losses, norms, taken = [], [], 2 * STEPS - 2 * steps
    model.train()
    while len(losses) < 2 * steps:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms.append(float(accelerator.clip_grad_norm_(model.parameters(), 0.25)))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(float(accelerator.reduce(loss.detach(), reduction="mean")))
            if len(losses) == 2 * steps:
                break
    found = {"losses": losses, "norms": norms, "taken": taken, "skipped": optimizer.step_was_skipped}
    if out is not None:
        accelerator.save_state(str(out))
        weights = accelerator.get_state_dict(model)
        found["weights"] = None if weights is None else {name: value.clone() for name, value in weights.items()}
        unwrapped = accelerator.unwrap_model(model)
        found["unwrapped"] = type(unwrapped).__name__
    accelerator.end_training()
    if plugin is not None:
        model.destroy()
    return found


def _plain() -> dict:
    with clean_state():
        return run(None)


def _jobs(folder: str) -> dict:
    """Every way to say it, one after another."""
    from accelerate import DeepSpeedPlugin

    found = {}
    for stage in range(4):
        with clean_state():
            fields = DeepSpeedPlugin(zero_stage=stage, gradient_accumulation_steps=2, gradient_clipping=0.25)
            found[f"fields, stage {stage}"] = run(fields, Path(folder) / str(stage))
    with clean_state():
        config = ds_config(2, optimizer=True, gradient_clipping=0.25)
        found["config"] = run(DeepSpeedPlugin(hf_ds_config=config, gradient_accumulation_steps=2))
    return found


@pytest.fixture(scope="module")
def plain():
    return run_ranks(_plain, 1, timeout_s=120)[0]


def test_plugin_by_fields_and_by_config_has_the_losses_of_one_process(tmp_path, plain):
    found = run_ranks(_jobs, 2, str(tmp_path), timeout_s=120)[0]
    for name, job in found.items():
        assert job["losses"] == pytest.approx(plain["losses"], rel=EXACT), name
        assert not job["skipped"]
