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


def run(plugin, out: Path | None = None, *, steps: int = STEPS, resume: Path | None = None, skip: int = 0) -> dict:
    """A training loop as accelerate's guide writes it; without a plugin, given or of a launcher, it is plain torch."""
    from accelerate import Accelerator
    from accelerate.utils import DummyOptim, DummyScheduler, InitProcessGroupKwargs

    gloo = InitProcessGroupKwargs(backend="gloo")  # accelerate finds no backend by itself without a device
    accelerator = Accelerator(gradient_accumulation_steps=2, deepspeed_plugin=plugin, kwargs_handlers=[gloo])
    model = llama()
    plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    config = plugin.deepspeed_config if plugin is not None else {}
    parameters = list(model.parameters())
    make = DummyOptim if "optimizer" in config else torch.optim.AdamW
    optimizer = make(parameters, lr=1e-2, weight_decay=0.1)
    if make is DummyOptim:  # the engine makes and steps the schedule
        scheduler = DummyScheduler(
            optimizer, lr_scheduler_callable=lambda made: torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.5)
        )
    else:  # which accelerate steps once for every process
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, accelerator.num_processes, gamma=0.5)
    loader = torch.utils.data.DataLoader(Sequences(), batch_size=BATCH // accelerator.num_processes)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    if resume is not None:
        accelerator.load_state(str(resume))
    losses, norms = [], []
    model.train()
    batches = accelerator.skip_first_batches(loader, skip) if skip else loader
    while len(losses) < 2 * steps:
        for batch in batches:
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
        batches = loader
    found = {"losses": losses, "norms": norms, "skipped": optimizer.step_was_skipped, "by": type(model).__name__}
    if out is not None:
        accelerator.save_state(str(out))
        weights = accelerator.get_state_dict(model)
        found["weights"] = None if weights is None else {name: value.clone() for name, value in weights.items()}
        unwrapped = accelerator.unwrap_model(model)
        found["unwrapped"] = type(unwrapped).__name__
    if plugin is not None:
        model.destroy()
    return found


def _plain() -> dict:
    with clean_state():
        return run(None)


def _plugin(stage: int):
    from accelerate import DeepSpeedPlugin

    return DeepSpeedPlugin(
        zero_stage=stage, gradient_accumulation_steps=2, gradient_clipping=0.25, zero3_save_16bit_model=True
    )


def _jobs(folder: str) -> dict:
    """Every way to say it, one after another."""
    from accelerate import DeepSpeedPlugin

    found = {}
    for stage in range(4):
        with clean_state():
            found[f"fields, stage {stage}"] = run(_plugin(stage), Path(folder) / str(stage))
    with clean_state():
        config = ds_config(2, gradient_clipping=0.25)
        config["optimizer"] = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}}
        found["config"] = run(DeepSpeedPlugin(hf_ds_config=config))
    with clean_state():
        offload = _plugin(2)
        offload.deepspeed_config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        found["offload"] = run(offload)
    return found


@pytest.fixture(scope="module")
def plain():
    return run_ranks(_plain, 1, timeout_s=120)[0]


def _half(folder: str) -> None:
    with clean_state():
        run(_plugin(2), Path(folder), steps=STEPS // 2)


def _rest(folder: str) -> dict:
    with clean_state():
        return run(_plugin(3), steps=STEPS // 2, resume=Path(folder), skip=STEPS)


def test_plugin_by_fields_and_by_config_has_the_losses_of_one_process(tmp_path, plain):
    ranks = run_ranks(_jobs, 2, str(tmp_path), timeout_s=170)
    for name, job in ranks[0].items():
        assert job["losses"] == pytest.approx(plain["losses"], rel=EXACT), name
        assert job["norms"] == pytest.approx(plain["norms"], rel=EXACT), name
        assert not job["skipped"]
    weights = [ranks[0][f"fields, stage {stage}"]["weights"] for stage in range(4)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[3][name], value, rtol=EXACT, atol=EXACT)
    assert ranks[1]["fields, stage 3"]["weights"] is None
    assert ranks[0]["fields, stage 3"]["unwrapped"] == "LlamaForCausalLM"


def test_load_state_goes_on_at_another_stage_and_number_of_processes(tmp_path, plain):
    run_ranks(_half, 2, str(tmp_path), timeout_s=120)
    rest = run_ranks(_rest, 1, str(tmp_path), timeout_s=120)[0]
    assert rest["losses"] == pytest.approx(plain["losses"][STEPS:], rel=EXACT)


SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
from test_accelerate import run
found = run(None)
import deepspeed
if deepspeed.comm.get_rank() == 0:
    with open(sys.argv[1], "w") as file:
        json.dump({{"losses": found["losses"], "ranks": deepspeed.comm.get_world_size(), "by": found["by"]}}, file)
deepspeed.comm.destroy_process_group()
"""


def test_accelerate_launch_with_its_plugin(tmp_path, plain):
    tests = Path(__file__).parent
    script, out = tmp_path / "train.py", tmp_path / "found.json"
    script.write_text(SCRIPT.format(tests=str(tests)))
    words = ["--use_deepspeed", "--num_processes", "2", "--zero_stage", "2", "--gradient_accumulation_steps", "2"]
    words += [
        "--gradient_clipping",
        "0.25",
        "--mixed_precision",
        "no",
        "--main_process_port",
        "0",
        "--num_machines",
        "1",
    ]
    words += ["--dynamo_backend", "no"]
    subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words, str(script), str(out)],
        check=True,
        timeout=150,
        env={**os.environ, "ACCELERATE_USE_CPU": "false"},
    )
    found = json.loads(out.read_text())
    assert (found["by"], found["ranks"]) == ("Engine", 2)
    assert found["losses"] == pytest.approx(plain["losses"], rel=EXACT)
