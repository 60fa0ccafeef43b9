"""Fine-tunes a causal language model of Hugging Face on text at ZeRO stage 3: weights, gradients, optimizer in shards.

    ds run --nproc 2 examples/finetune_smollm/train.py --model FOLDER

FOLDER is a model as ``save_pretrained`` writes it; made for SmolLM2-135M, it takes any causal model of transformers.
Needs ``ds-core``, ``ds-zero``, ``ds-accel-cpu`` (or another accelerator's wheel) and ``transformers``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ds_core
from ds_core import comm

CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.95], "weight_decay": 0.01}},
    "bf16": {"enabled": True},  # float32 masters are kept beside
    "zero_optimization": {"stage": 3},
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fine-tune a causal language model at ZeRO stage 3.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder with the model and its tokenizer")
    add("--data", type=Path, help="text to learn, UTF-8; without it the reference text of Python's help()")
    add("--steps", type=int, default=30, help="default 30")
    add("--context", type=int, default=128, help="tokens of a sample; default 128")
    add("--micro-batch", type=int, default=1, help="samples of a rank and step; default 1")
    add("--lr", type=float, default=CONFIG["optimizer"]["params"]["lr"], help="default 2e-5")
    add("--stage", type=int, default=3, help="ZeRO stage; default 3")
    add("--torch-adam", action="store_true", help="step torch's fused AdamW instead of the accelerator's")
    add("--save", type=Path, help="folder to write a checkpoint into at the end")
    add("--result", type=Path, help="file to write losses and memory into, as JSON")
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's configuration: `CONFIG` with what the command line says."""
    optimizer = {**CONFIG["optimizer"]["params"], "lr": options.lr}
    if options.torch_adam:
        optimizer["torch_adam"] = True
    return {
        **CONFIG,
        "train_micro_batch_size_per_gpu": options.micro_batch,
        "optimizer": {"type": "AdamW", "params": optimizer},
        "zero_optimization": {"stage": options.stage},
    }


def read_text(path: Path | None) -> str:
    """The text of a file, or without one what Python's own help() shows."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def batches(tokens: torch.Tensor, options: argparse.Namespace, rank: int, ranks: int) -> Iterator[torch.Tensor]:
    """This rank's samples of every step, (micro-batch, context): windows in order, dealt out to the ranks in turn."""
    windows = tokens[: len(tokens) // options.context * options.context].view(-1, options.context)
    for step in range(options.steps):
        first = (step * ranks + rank) * options.micro_batch
        yield windows[torch.arange(first, first + options.micro_batch) % len(windows)]


def load(options: argparse.Namespace) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model, ready to train, and the text as tokens, 1-D."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    model.config.use_cache = False
    tokens = tokenizer(read_text(options.data), return_tensors="pt", verbose=False).input_ids[0]
    if len(tokens) < options.context:
        raise SystemExit(f"the text has {len(tokens)} tokens, fewer than --context {options.context}; give more text")
    return model.train(), tokens


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Mean losses of every step, peak memory of every rank in bytes, seconds. Called on all ranks."""
    rank, ranks = comm.get_rank(), comm.get_world_size()
    model, tokens = load(options)
    engine, *_ = ds_core.initialize(model=model, config=config_of(options))
    losses, started = [], time.monotonic()
    for step, ids in enumerate(batches(tokens, options, rank, ranks), 1):
        inputs = ids.to(engine.device)
        loss = engine(input_ids=inputs, labels=inputs).loss
        engine.backward(loss)
        engine.step()
        losses.append(sum(comm.gather_json(loss.item())) / ranks)
        if rank == 0:
            norm = engine.get_global_grad_norm()
            print(f"step {step}/{options.steps}  loss {losses[-1]:.4f}  norm {norm:.3f}", flush=True)
    seconds = time.monotonic() - started
    if options.save is not None:
        engine.save_checkpoint(options.save)
    peaks = comm.gather_json(engine.accelerator.memory().peak_bytes)
    engine.destroy()
    return {"losses": losses, "peak_bytes": peaks, "seconds": seconds}


def main() -> None:
    """The program. Every rank runs it."""
    options = parse()
    ds_core.init_distributed()
    result = train(options)
    if comm.get_rank() == 0 and options.result is not None:
        options.result.write_text(json.dumps(result), encoding="utf-8")
    comm.destroy_process_group()


if __name__ == "__main__":
    main()
