"""One optimizer step over N float32 parameters each time it is told: adam.py ENGINE JOB NUMEL.

ENGINE: foreach | fused | deepspeed | ours
JOB:    adam      one AdamW step
        update    unscale, global norm, clip, AdamW, and the result rounded into bfloat16 working weights, from float32
                  gradients; every engine with as few passes as its public interface allows
        update16  the same from bfloat16 gradients

Every engine has the same parameters and gradients; a job rewrites the gradients before the clock starts where it
changes them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

from protocol import Channel

channel = Channel()

import torch  # noqa: E402  (what it prints belongs in the log)

SCALE, MAX_NORM = 1024.0, 1.0
HYPER = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

Step = Callable[[], None]


def adamw(engine: str, param: torch.nn.Parameter) -> torch.optim.Optimizer:
    """The engine's AdamW."""
    if engine == "deepspeed":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam([param], adamw_mode=True, **HYPER)
    if engine == "ours":
        from ds_accel_cpu.optim import CPUAdam

        return CPUAdam([param], adamw_mode=True, **HYPER)
    return torch.optim.AdamW([param], foreach=engine == "foreach", fused=engine == "fused", **HYPER)


def passes(
    optimizer: torch.optim.Optimizer, param: torch.nn.Parameter, source: torch.Tensor, out: torch.Tensor
) -> Step:
    """Unscale, norm, clip, step and copy, one after the other."""

    def update() -> None:
        if param.grad is not source:  # bfloat16 gradients become the float32 ones this optimizer takes
            param.grad.copy_(source)
        param.grad.mul_(1.0 / SCALE)
        norm = float(torch.linalg.vector_norm(param.grad))
        coefficient = MAX_NORM / (norm + 1e-6)
        if coefficient < 1.0:
            param.grad.mul_(coefficient)
        optimizer.step()
        out.copy_(param.detach())

    return update


def one_pass(
    optimizer: torch.optim.Optimizer, param: torch.nn.Parameter, source: torch.Tensor, out: torch.Tensor
) -> Step:
    """The norm, and then everything else while Adam passes over the data anyway."""
    from ds_core import ops
    from ds_core.optim.flat import FlatUpdate

    taken = 0

    def update() -> None:
        nonlocal taken
        taken += 1
        norm = math.sqrt(float(ops.sum_of_squares(source))) / SCALE
        factor = min(1.0, MAX_NORM / (norm + 1e-6)) / SCALE
        run = FlatUpdate(param.detach(), source, out, state_offset=0, group=0, param_index=0, step=taken)
        optimizer.step_flat([run], grad_factor=torch.tensor(factor, dtype=torch.float32))

    return update


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["foreach", "fused", "deepspeed", "ours"])
    parser.add_argument("job", choices=["adam", "update", "update16"])
    parser.add_argument("numel", type=float)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    generator = torch.Generator().manual_seed(0)
    numel = int(asked.numel)
    param = torch.nn.Parameter(torch.randn(numel, generator=generator))
    grad = torch.randn(numel, generator=generator) * 1e-3
    optimizer = adamw(asked.engine, param)
    step: Step = optimizer.step
    source = grad
    pristine: torch.Tensor | None = None
    out = torch.empty(0)
    if asked.job != "adam":
        source = (grad * SCALE).to(torch.bfloat16 if asked.job == "update16" else torch.float32)
        out = torch.empty(numel, dtype=torch.bfloat16)
        step = (one_pass if asked.engine == "ours" else passes)(optimizer, param, source, out)
        pristine = source.clone() if asked.job == "update" and asked.engine != "ours" else None
        grad = torch.empty(numel) if asked.job == "update16" and asked.engine != "ours" else source
    if asked.engine != "ours" or asked.job == "adam":
        param.grad = grad
    step()  # allocates the states, and builds what is built at first use
    channel.say(implementation=str(torch.__version__))
    for _ in channel.orders():
        if pristine is not None:
            source.copy_(pristine)
        began = time.perf_counter()
        step()
        took_s = time.perf_counter() - began
        channel.say(s=took_s, first=param.detach()[:8].tolist(), total=float(param.detach().double().sum()))


main()
