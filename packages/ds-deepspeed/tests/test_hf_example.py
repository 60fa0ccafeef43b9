"""The example over transformers' Trainer, started as it says: by the command deepspeed, on two processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hf_jobs import llama_config

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "hf_trainer.py"
TEXT = "the quick brown fox jumps over the lazy dog and then it goes on to jump again " * 40

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


def make_folder(folder: Path) -> None:
    """A small Llama of random weights and a tokenizer of single words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["[UNK]", *dict.fromkeys(TEXT.split())])}
    made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(5)
    LlamaForCausalLM(llama_config()).save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT)


def deepspeed(tmp_path: Path, ranks: int, *words: str) -> dict:
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), str(SCRIPT)]
    options = ["--model", str(tmp_path), "--data", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out")]
    options += ["--result", str(tmp_path / "found.json"), "--context", "12", "--batch", "4", "--lr", "1e-2"]
    done = subprocess.run(
        [*command, *options, *words], capture_output=True, text=True, timeout=150, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((tmp_path / "found.json").read_text())


def test_the_example_learns_on_two_processes(tmp_path):
    make_folder(tmp_path)
    whole = deepspeed(tmp_path, 2, "--steps", "6", "--save-steps", "4", "--accumulate", "2", "--fp32")
    assert len(whole["losses"]) == 6
    assert whole["losses"][-1] < whole["losses"][0] - 0.2
    assert all(math.isfinite(norm) for norm in whole["norms"])
    assert (tmp_path / "out" / "checkpoint-4" / "latest").is_file()
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()
