"""Steps of the engine beside steps of a loop by hand, in turns in one process: overhead.py STEPS [--micro B --seq T].

The model has 2 million parameters in float32 on one rank and one thread; all start from the same weights and see the
same data. The loops:

    hand    forward, backward, clip_grad_norm_, fused AdamW, zero_grad
    engine  ds_core.initialize with the same settings
    torch   the same with `torch_adam`, so that the update itself is torch's, as by hand

Prints one JSON object: seconds of every step by loop, the number of parameters, and the losses after the last step.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from gpt import add_size, make_batches, make_model

import ds_core

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ADAM = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
CLIP = 1.0


def by_hand(asked: argparse.Namespace) -> Step:
    """What a user would write without any framework."""
    model = make_model(asked)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, fused=True, **ADAM)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def by_engine(asked: argparse.Namespace, **params: Any) -> Step:
    """The engine as it comes."""
    model = make_model(asked)
    config = {
        "train_micro_batch_size_per_gpu": asked.micro,
        "gradient_clipping": CLIP,
        "optimizer": {"type": "AdamW", "params": {**ADAM, "betas": list(ADAM["betas"]), **params}},
    }
    engine, *_ = ds_core.initialize(model=model, config=config)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = engine(x, y)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: this thread's processor time")
    add_size(parser)
    parser.set_defaults(layers=4, dim=192, vocab=512)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    now = time.perf_counter if asked.clock == "wall" else time.thread_time
    loops = {"hand": by_hand(asked), "engine": by_engine(asked), "torch": by_engine(asked, torch_adam=True)}
    names = list(loops)
    times: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    batches = make_batches(asked, 16, rank=0)
    gc.collect()
    gc.freeze()
    for index in range(asked.warmup + asked.steps):
        ((x, y),) = batches[index % len(batches)]
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            began = now()
            loss = loops[name](x, y)
            took_s = now() - began
            losses[name] = float(loss)
            if index >= asked.warmup:
                times[name].append(took_s)
    params = sum(p.numel() for p in make_model(asked).parameters())
    print(json.dumps({"params": params, "times": times, "losses": losses}))


main()
