"""Training of a small Mixtral: experts in transformers' own ways beside ours, in one process and over two ranks.

    python benchmarks/moe_hugging_face.py            about a minute on two idle cores
    python benchmarks/moe_hugging_face.py --quick    a few seconds, to see that it works

Every variant trains the same model by the same engine and optimizer; variants take turns, a few steps each, so what
else the machine does falls on all of them. A process has one thread. Prints tokens per second of all ranks, median and
range over turns, and the median of what a variant makes of the first one's figure in the same turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from harness import Sample


@dataclasses.dataclass(frozen=True)
class Size:
    """What is trained, and for how long."""

    layers: int = 4
    hidden: int = 256
    inner: int = 512
    experts: int = 8
    vocabulary: int = 8192
    rows: int = 4
    length: int = 128
    turns: int = 6
    steps: int = 1


QUICK = Size(layers=1, hidden=32, inner=64, vocabulary=128, length=16, turns=2, steps=1)
ALONE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "transformers, loop over experts": ("eager", {}),
    "transformers, grouped_mm": ("grouped_mm", {}),
    "ds-moe, grouped products": ("eager", {"enabled": True}),
    "ds-moe, a product for each expert": ("eager", {"enabled": True, "use_grouped_mm": False}),
}
DIVIDED = {
    "transformers, loop over experts": ALONE["transformers, loop over experts"],
    "transformers, grouped_mm": ALONE["transformers, grouped_mm"],
    "ds-moe, all experts on each rank": ("eager", {"enabled": True}),
    "ds-moe, autoep_size 2": ("eager", {"enabled": True, "autoep_size": 2}),
}
"""Name of a variant: transformers' implementation, and what the configuration says of experts."""


def make(size: Size, implementation: str) -> Any:
    """A model of random weights, the same for all variants."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=size.experts,
        max_position_embeddings=size.length,
        experts_implementation=implementation,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def measure(size: Size, variants: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, list[float]]:
    """Tokens per second of all ranks, by variant, one value a turn. Called on all ranks."""
    import torch

    import ds_core
    from ds_core import comm

    engines = {}
    for name, (implementation, section) in variants.items():
        config = {
            "train_micro_batch_size_per_gpu": size.rows,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
            "expert_parallel": section,
        }
        engines[name] = ds_core.initialize(model=make(size, implementation), config=config)[0]
    generator = torch.Generator().manual_seed(comm.get_rank())
    tokens = torch.randint(size.vocabulary, (size.rows, size.length), generator=generator)

    def turn(engine: Any, steps: int) -> float:
        comm.barrier()
        begin = time.perf_counter()
        for _ in range(steps):
            engine.backward(engine(input_ids=tokens, labels=tokens).loss)
            engine.step()
        comm.barrier()
        return steps * tokens.numel() * comm.get_world_size() / (time.perf_counter() - begin)

    for engine in engines.values():
        turn(engine, 1)
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(size.turns):
        for name, engine in engines.items():
            found[name].append(turn(engine, size.steps))
    return found


def report(title: str, found: Mapping[str, list[float]]) -> None:
    """Writes a table."""
    first = next(iter(found.values()))
    sys.stdout.write(f"\n{title}\n")
    for name, values in found.items():
        sample = Sample(tuple(values))
        gain = Sample(tuple(value / base for value, base in zip(values, first, strict=True)))
        sys.stdout.write(f"  {name:36} {sample.text('tokens/s'):44} {gain.median:.2f} x\n")


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    size = QUICK if parser.parse_args().quick else Size()
    from ds_core.testing import run_ranks

    numel = sum(parameter.numel() for parameter in make(size, "eager").parameters())
    sys.stdout.write(
        f"Mixtral of {numel / 1e6:.1f} M parameters, {size.experts} experts in {size.layers} layers, float32, "
        f"{size.rows} x {size.length} tokens a rank and step; load of this machine before: {os.getloadavg()[0]:.1f}\n"
    )
    report("one process", run_ranks(measure, 1, size, ALONE, timeout_s=300.0)[0])
    report("two ranks", run_ranks(measure, 2, size, DIVIDED, timeout_s=300.0)[0])


if __name__ == "__main__":
    main()
