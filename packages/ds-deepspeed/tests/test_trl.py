"""TRL's SFT and DPO trainers through this wheel, on data and a tokenizer made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_jobs import arguments, clean_state, ds_config, llama

from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks
EXACT = 1e-4
WORDS = list("abcdefghijklmnop")


def tokenizer() -> Any:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def text(seed: int, length: int) -> str:
    return " ".join(WORDS[(seed + step * (1 + seed % 3)) % len(WORDS)] for step in range(length))


def shared(out: Path, stage: int | None) -> dict[str, Any]:
    """The arguments that the Trainer's tests use, as keywords for TRL's own classes."""
    given = arguments(out, None if stage is None else ds_config(stage))
    names = (
        "output_dir per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_steps "
        "learning_rate warmup_steps weight_decay max_grad_norm logging_steps logging_nan_inf_filter eval_steps "
        "report_to disable_tqdm seed use_cpu deepspeed"
    )
    kept = {name: getattr(given, name) for name in names.split()}
    return {**kept, "eval_strategy": "no", "save_strategy": "no", "bf16": False, "gradient_checkpointing": False}


def sft(out: Path, stage: int | None) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_dict({"text": [text(index, 8) for index in range(48)]})
    given = SFTConfig(**shared(out, stage), max_length=16, loss_type="nll")
    return SFTTrainer(model=llama(), args=given, train_dataset=rows, processing_class=tokenizer())


def dpo(out: Path, stage: int | None) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = {
        "prompt": [text(index, 4) for index in range(48)],
        "chosen": [" " + text(index + 4, 4) for index in range(48)],
        "rejected": [" " + text(index + 9, 4) for index in range(48)],
    }
    given = DPOConfig(**shared(out, stage), max_length=16)
    data = Dataset.from_dict(rows)
    return DPOTrainer(model=llama(), ref_model=llama(), args=given, train_dataset=data, processing_class=tokenizer())


def _run(folder: str, stages: list[int | None]) -> dict[str, list[float]]:
    found = {}
    for make in (sft, dpo):
        for stage in stages:
            with clean_state():
                trainer = make(Path(folder) / f"{make.__name__} {stage}", stage)
                trainer.train()
                found[f"{make.__name__} {stage}"] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
                if stage is not None:
                    trainer.model_wrapped.destroy()
    return found


def test_sft_and_dpo_have_the_losses_of_one_process(tmp_path):
    plain = run_ranks(_run, 1, str(tmp_path), [None], timeout_s=170)[0]
    found = run_ranks(_run, 2, str(tmp_path), [1, 2, 3], timeout_s=170)[0]
    for name in ("sft", "dpo"):
        for stage in (1, 2, 3):
            assert found[f"{name} {stage}"] == pytest.approx(plain[f"{name} None"], rel=EXACT), (name, stage)
    assert all(len(losses) == 4 for losses in found.values())
