"""How long each pipeline schedule takes on real ranks whose layers only sleep, against what the simulator says.

    python benchmarks/pipeline_bubble.py --ranks 4 --micro-batches 8

A rank sleeps `--unit-ms` for its share of a forward and as long for each part of its backward, so that ranks do not
compete for cores, and what is left is the runtime's own: messages, waiting, and doing things in order.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch
from torch import nn

import ds_core
from ds_core import comm
from ds_core.testing import run_ranks
from ds_pipeline import LayerSpec, PipelineModule
from ds_pipeline.schedules import SCHEDULES, Costs, make_schedule, simulate

WIDTH = 1024


class _Inputs(torch.autograd.Function):
    """The identity, whose backward sleeps."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradient, None


class _Weights(torch.autograd.Function):
    """A weight, whose backward sleeps."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradient, None


class Sleeper(nn.Module):
    """A layer that takes its time, and nothing else."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Inputs.apply(x.requires_grad_(), self.seconds)
        return y + _Weights.apply(self.weight, self.seconds)


def measure(name: str, ranks: int, micro_batches: int, unit_s: float, repeats: int) -> list[float]:
    """Seconds of each step, from where all ranks begin to where the last ends. On each rank."""
    stages = len(make_schedule(name, ranks=ranks, micro_batches=1).rank_of_stage)
    layers = [LayerSpec(Sleeper, unit_s * ranks / stages) for _ in range(stages)]
    model = PipelineModule(layers, ranks, loss_fn=lambda x, y: x.mean())
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        "optimizer": {"type": "SGD", "params": {"lr": 0.0}},
        "pipeline": {"schedule": name},
    }
    engine = ds_core.initialize(model=model, config=config)[0]
    found = []
    for _ in range(repeats + 1):
        comm.barrier()
        start = time.monotonic()
        engine.train_batch((torch.zeros(1, WIDTH), None) for _ in range(micro_batches))
        found.append(time.monotonic() - start)
    engine.destroy()
    return found[1:]  # the first tells shapes


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--unit-ms", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--schedule", action="append", help="only this one; may be given several times")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    unit = given.unit_ms / 1000
    print(f"{given.ranks} ranks, {given.micro_batches} micro-batches, {given.unit_ms:g} ms for each of F, I, W")
    print(f"{'schedule':12} {'simulated':>10} {'measured':>10} {'ratio':>6} {'bubble':>8} {'simulated bubble':>17}")
    for name, kind in SCHEDULES.items():
        if not kind.is_training or (given.schedule and name not in given.schedule):
            continue
        schedule = make_schedule(name, ranks=given.ranks, micro_batches=given.micro_batches)
        each = given.ranks / schedule.stages
        simulation = simulate(schedule, Costs(forward=each, backward_input=each, backward_weight=each))
        rows = run_ranks(
            measure, given.ranks, name, given.ranks, given.micro_batches, unit, given.repeats, timeout_s=300
        )
        steps = [max(row) for row in zip(*rows, strict=True)]
        seconds, expected = statistics.median(steps), simulation.makespan * unit
        busy = 3 * given.micro_batches * unit
        print(
            f"{name:12} {expected:9.3f}s {seconds:9.3f}s {seconds / expected:6.2f} {1 - busy / seconds:8.1%} "
            f"{simulation.bubble_fraction:17.1%}"
        )


if __name__ == "__main__":
    main()
