"""Trains a small language model of Hugging Face on text, divided among ranks as a JSON file says.

    ds run --nproc 4 examples/parallel_text/train.py --model dense --config examples/parallel_text/pipeline.json
    ds run --nproc 4 examples/parallel_text/train.py --model experts --config examples/parallel_text/experts.json

Nothing here knows of stages, experts or shards. With ``pipeline.json`` four ranks are two stages of two replicas each;
with ``experts.json`` four experts are on two ranks, twice, and optimizer state and gradients in shards; without
``--config`` one process trains the whole model, and sees the same losses.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import ds_core

ALONE: dict[str, Any] = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-3}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_max_lr": 2e-3}},
    "gradient_clipping": 1.0,
}
CONTEXT = 64
SHAPE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Pieces of the reference text of Python's help(), a token a byte."""

    def __init__(self) -> None:
        topics = pydoc_data.topics.topics
        text = "\n".join(topics[name] for name in sorted(topics)).encode()
        self._bytes = torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._bytes) // CONTEXT

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        piece = self._bytes[index * CONTEXT : (index + 1) * CONTEXT].long()
        return {"input_ids": piece, "labels": piece}


def model_of(kind: str) -> torch.nn.Module:
    """A Llama, or a Mixtral of four experts of which a token takes two; the same weights in every process."""
    torch.manual_seed(0)
    if kind == "dense":
        return LlamaForCausalLM(LlamaConfig(**SHAPE))
    return MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2))


def main() -> None:
    """Trains, and prints the mean loss of every few steps on the first rank."""
    parser = argparse.ArgumentParser(description="Train a small language model, divided as a JSON file says.")
    parser.add_argument("--model", choices=("dense", "experts"), default="dense", help="Llama or Mixtral")
    parser.add_argument("--config", help="JSON file; without it one process trains the whole model")
    parser.add_argument("--steps", type=int, default=60, help="updates; default 60")
    options = parser.parse_args()
    model = model_of(options.model)
    engine, *_ = ds_core.initialize(
        model=model,
        model_parameters=model.parameters(),
        training_data=Windows(),
        config=options.config or ALONE,
    )
    if engine.global_rank == 0:
        print(f"{sum(p.numel() for p in engine.module.parameters()):,} parameters on this rank; {engine.mesh.plan}")
    for step in range(1, options.steps + 1):
        loss = engine.train_batch()
        if engine.global_rank == 0 and (step % 10 == 0 or step == 1):
            print(f"step {step}: loss {float(loss):.6f}", flush=True)
    engine.destroy()


if __name__ == "__main__":
    main()
