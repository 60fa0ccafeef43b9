"""Scripts as DeepSpeed's public tutorials have them, in ``scripts/``, run by the commands the tutorials print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ranks
SCRIPTS = Path(__file__).parent / "scripts"
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
EXACT = 1e-4


def run(launch: list[str], script: str, out: Path, *words: str) -> list[float]:
    """The losses that the script writes."""
    losses = out / "losses.json"
    config = ["--deepspeed_config", script.replace(".py", ".json")] if script != "hugging_face.py" else []
    subprocess.run(
        [*launch, script, "--deepspeed", *config, *words, "--losses", str(losses)],
        check=True,
        cwd=SCRIPTS,
        timeout=170,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": ""},
    )
    found: list[float] = json.loads(losses.read_text())
    return found


def test_cifar_learns(tmp_path):
    losses = run(DEEPSPEED, "cifar.py", tmp_path)
    assert len(losses) == 16
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_alexnet_in_stages_has_the_losses_of_one_stage(tmp_path):
    divided = run(DEEPSPEED, "alexnet_pipeline.py", tmp_path, "-p", "2", "--own-loader")
    alone = run([*DEEPSPEED[:-3], "1", *DEEPSPEED[-2:]], "alexnet_pipeline.py", tmp_path, "-p", "1", "--own-loader")
    assert divided == pytest.approx(alone, rel=EXACT)


def test_cifar_with_experts_has_the_losses_of_experts_on_every_rank(tmp_path):
    words = ("--moe", "--num-experts", "4", "--moe-param-group", "--epochs", "1")
    divided = run(TORCHRUN, "cifar_moe.py", tmp_path, *words, "--ep-world-size", "2")
    whole = run(TORCHRUN, "cifar_moe.py", tmp_path, *words, "--ep-world-size", "1")
    assert divided == pytest.approx(whole, rel=EXACT)


def test_hugging_face_learns_and_saves(tmp_path):
    words = ["--output_dir", str(tmp_path / "out"), "--max_steps", "6", "--per_device_train_batch_size", "4"]
    words += ["--learning_rate", "1e-2", "--warmup_steps", "1", "--logging_steps", "1", "--report_to", "none"]
    losses = run(TORCHRUN, "hugging_face.py", tmp_path, "hugging_face.json", *words, "--use_cpu")
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "model.safetensors").exists()
