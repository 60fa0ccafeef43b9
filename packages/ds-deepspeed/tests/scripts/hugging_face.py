"""A causal language model with transformers' Trainer, as its guide to DeepSpeed writes one: `--deepspeed CONFIG`.

deepspeed hugging_face.py --deepspeed hugging_face.json --output_dir out --max_steps 6 ...
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed


@dataclass
class ScriptArguments:
    losses: str = field(default="", metadata={"help": "a file for the losses"})


def sequences(count, length=16, vocabulary=64):
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(0, vocabulary, (count, 1), generator=generator)
    steps = torch.randint(1, 4, (count, 1), generator=generator)
    ids = (first + steps * torch.arange(length)) % vocabulary
    return [{"input_ids": row, "labels": row} for row in ids]


def main():
    script, training = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )
    trainer = Trainer(model=model, args=training, train_dataset=sequences(128), eval_dataset=sequences(32))
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    if script.losses and trainer.is_world_process_zero():
        rows = trainer.state.log_history
        losses = [row.get("loss", row.get("eval_loss")) for row in rows if "loss" in row or "eval_loss" in row]
        Path(script.losses).write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
