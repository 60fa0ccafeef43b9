"""Tiny causal language models of transformers, and training of them, for tests of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from staged_model import Trained

import ds_core

VOCABULARY, LENGTH, ROWS = 31, 7, 2
_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "max_position_embeddings": 32}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def make(family: str, layers: int = 4) -> Any:
    """A model with random weights, the same on every rank, in training mode."""
    import transformers

    torch.manual_seed(0)
    special = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config: Any = transformers.GPT2Config(
            n_embd=16, n_layer=layers, n_head=4, n_positions=32, **_NO_DROPOUT, **special
        )
        return transformers.GPT2LMHeadModel(config).train()
    if family == "llama":
        config = transformers.LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=False, **_GROUPED, **special)
        return transformers.LlamaForCausalLM(config).train()
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    config = transformers.Qwen2Config(
        num_hidden_layers=layers, tie_word_embeddings=True, **window, **_GROUPED, **special
    )
    return transformers.Qwen2ForCausalLM(config).train()


def batches(masked: bool = False, seed: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """Endless micro-batches; `masked`: with padding at the end of a row."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=generator)
        batch = {"input_ids": tokens, "labels": tokens.clone()}
        if masked:
            batch["attention_mask"] = torch.ones_like(tokens)
            batch["attention_mask"][0, 5:] = 0
            batch["labels"][0, 5:] = -100
        yield batch


def train(config: Mapping[str, Any], family: str, masked: bool = False, steps: int = 2) -> Trained:
    """Trains on this rank; the same call on one process and on many."""
    engine = ds_core.initialize(model=make(family), config=dict(config))[0]
    data = batches(masked)
    losses, norms = [], []
    for _ in range(steps):
        losses.append(float(engine.train_batch(data)))
        norms.append(float(engine.get_global_grad_norm()))
    run = Trained(engine, losses, norms)
    engine.destroy()
    return run


def train_all(cases: list[tuple[Mapping[str, Any], str, bool]]) -> list[Trained]:
    """One run after another on these ranks."""
    return [train(*case) for case in cases]
