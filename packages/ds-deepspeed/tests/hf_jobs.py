"""Small jobs of Hugging Face's libraries, each in one call: a Llama of random weights on sequences made up here."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ds_core.schedules import WarmupDecayLR

SEQUENCES, LENGTH, VOCABULARY = 48, 12, 64
BATCH, STEPS = 8, 4


class Sequences(Dataset):
    """Token ids that are their own labels; deterministic, and different from row to row."""

    def __init__(self, rows: int = SEQUENCES) -> None:
        generator = torch.Generator().manual_seed(11)
        self.ids = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def llama_config() -> Any:
    """A Llama of two layers, biases nowhere, grouped heads, tied to nothing."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )


def llama() -> Any:
    """The same weights on every rank."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(7)
    return LlamaForCausalLM(llama_config())


def ds_config(stage: int, *, optimizer: bool = False, scheduler: bool = False, **more: Any) -> dict[str, Any]:
    """The config that the guides of transformers print, with "auto" wherever it may be."""
    config: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "zero_optimization": {
            "stage": stage,
            "allgather_partitions": True,
            "allgather_bucket_size": 2e8,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": "auto",
            "contiguous_gradients": True,
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
            "sub_group_size": 1e9,
        },
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
    }
    if optimizer:
        params = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
        config["optimizer"] = {"type": "AdamW", "params": params}
    if scheduler:
        params = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"), "auto")
        config["scheduler"] = {"type": "WarmupDecayLR", "params": params}
    return {**config, **more}


@contextmanager
def clean_state() -> Iterator[None]:
    """accelerate and transformers keep a job's state in globals; a process that runs several forgets it in between."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    before = dict(os.environ)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()
        os.environ.clear()
        os.environ.update(before)
        gc.collect()


def arguments(out: Path, deepspeed: Any = None, **more: Any) -> Any:
    """Four steps of two micro-batches, eight sequences over all ranks each."""
    from transformers import TrainingArguments

    per_rank = BATCH // int(os.environ["WORLD_SIZE"])
    settings: dict[str, Any] = {
        "per_device_train_batch_size": per_rank,
        "per_device_eval_batch_size": per_rank,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "weight_decay": 0.1,
        "max_grad_norm": 0.25,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 3,
        "use_cpu": True,
        "deepspeed": deepspeed,
    }
    return TrainingArguments(output_dir=str(out), **{**settings, **more})


def train(
    out: Path, deepspeed: Any = None, *, resume: Path | None = None, own: bool = False, model: Any = None, **more: Any
) -> Any:
    """What a Trainer logs, and the trainer itself; `own`: optimizer and schedule as `ds_config` writes them."""
    from transformers import Trainer

    given = arguments(out, deepspeed, **more)
    made = llama() if model is None else model()
    optimizers = _written(made, given) if own else (None, None)
    data = {"train_dataset": Sequences(), "eval_dataset": Sequences(BATCH * 2)}
    trainer = Trainer(model=made, args=given, optimizers=optimizers, **data)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return history(trainer), trainer


def _written(model: Any, given: Any) -> tuple[Any, Any]:
    """torch's AdamW over all parameters alike, and the schedule DeepSpeed's configs name."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.learning_rate, weight_decay=given.weight_decay)
    return optimizer, WarmupDecayLR(optimizer, STEPS, 0.0, given.learning_rate, given.warmup_steps)


def history(trainer: Any) -> dict[str, list[float]]:
    """Losses, norms, rates and evaluation losses in order."""
    rows = trainer.state.log_history
    return {
        name: [float(row[name]) for row in rows if name in row]
        for name in ("loss", "grad_norm", "learning_rate", "eval_loss")
    }
