"""Fine-tunes a causal language model on text with the Trainer of Hugging Face transformers and a DeepSpeed config.

    deepspeed --num_gpus 2 examples/hf_trainer.py --model FOLDER

FOLDER is a model as ``save_pretrained`` writes it; made for SmolLM2-135M, it takes any causal model of transformers.
Needs ``transformers``, ``accelerate``, and a distribution ``deepspeed``: the wheel of this repository over ``ds-core``,
``ds-zero`` and ``ds-accel-cpu`` (or another accelerator's wheel), or the original; nothing here depends on which it is.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import deepspeed

CONFIG: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "total_num_steps": "auto",
        },
    },
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "steps_per_print": 1_000_000,
}


class Windows(Dataset):
    """Consecutive windows of a text's tokens; each is its own label."""

    def __init__(self, tokens: torch.Tensor, length: int) -> None:
        self.rows = tokens[: len(tokens) // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def parse() -> argparse.Namespace:
    """The command line; the launcher adds ``--local_rank``."""
    parser = argparse.ArgumentParser(description="Fine-tune a causal language model with transformers' Trainer.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder with the model and its tokenizer")
    add("--data", type=Path, help="text to learn, UTF-8; without it the reference text of Python's help()")
    add("--output", type=Path, default=Path("hf_trainer_output"), help="folder for checkpoints and the final model")
    add("--steps", type=int, default=20, help="default 20")
    add("--context", type=int, default=128, help="tokens of a sample; default 128")
    add("--batch", type=int, default=2, help="samples of a step over all ranks; default 2")
    add("--accumulate", type=int, default=1, help="micro-batches of a step; default 1")
    add("--lr", type=float, default=2e-5, help="default 2e-5")
    add("--stage", type=int, default=3, help="ZeRO stage; default 3")
    add("--fp32", action="store_true", help="train in float32 rather than in bfloat16 with float32 masters")
    add("--save-steps", type=int, default=0, help="steps between two checkpoints; default none")
    add("--resume", type=Path, help="checkpoint to go on from, of any number of processes")
    add("--result", type=Path, help="file to write losses into, as JSON")
    add("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    return parser.parse_args()


def read_text(path: Path | None) -> str:
    """The text of a file, or without one what Python's own help() shows."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def arguments(options: argparse.Namespace, ranks: int) -> TrainingArguments:
    """How to train. From here on, transformers constructs models in shards at stage 3."""
    per_rank, rest = divmod(options.batch, ranks * options.accumulate)
    if rest or not per_rank:
        raise SystemExit(f"--batch {options.batch} must be a multiple of {ranks} ranks x --accumulate")
    return TrainingArguments(
        output_dir=str(options.output),
        per_device_train_batch_size=per_rank,
        gradient_accumulation_steps=options.accumulate,
        max_steps=options.steps,
        learning_rate=options.lr,
        weight_decay=0.01,
        adam_beta2=0.95,
        warmup_steps=2,
        max_grad_norm=1.0,
        bf16=not options.fp32,
        logging_steps=1,
        save_strategy="steps" if options.save_steps else "no",
        save_steps=options.save_steps or 500,
        report_to=[],
        disable_tqdm=True,
        seed=7,
        use_cpu=not torch.accelerator.is_available(),
        deepspeed={**CONFIG, "zero_optimization": {**CONFIG["zero_optimization"], "stage": options.stage}},
    )


def main() -> None:
    """The program. Every rank runs it."""
    options = parse()
    deepspeed.init_distributed()  # before the model: its shards are cut for the ranks there are
    training = arguments(options, int(os.environ.get("WORLD_SIZE", "1")))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dtype = torch.float32 if options.fp32 else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    model.config.use_cache = False
    tokens = tokenizer(read_text(options.data), return_tensors="pt", verbose=False).input_ids[0]
    trainer = Trainer(model=model, args=training, train_dataset=Windows(tokens, options.context))
    trainer.train(resume_from_checkpoint=None if options.resume is None else str(options.resume))
    trainer.save_model(str(options.output / "final"))
    if trainer.is_world_process_zero() and options.result is not None:
        rows = [row for row in trainer.state.log_history if "loss" in row]
        found = {"losses": [float(row["loss"]) for row in rows], "norms": [float(row["grad_norm"]) for row in rows]}
        options.result.write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
