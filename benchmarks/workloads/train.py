"""Trains the reference model with one engine on W ranks of this machine, and writes what it took as JSON.

    torchrun --nproc-per-node W train.py ENGINE [--bf16] [--steps N] [--result FILE] [--count]

ENGINE: plain          one process or several, no communication, torch's fused AdamW: the work of a rank by itself
        ddp, fsdp2     torch's
        ds0 .. ds3     deepspeed at a stage
        ours0 .. ours3 this project at a stage

With bf16, plain, ddp and fsdp2 hold everything in bfloat16 and keep no float32 master, which is less work and memory;
`fsdp2m` keeps one. deepspeed runs torch's Adam (`torch_adam`), as its own is measured elsewhere.

--count writes what a rank holds and sends instead of times: bytes of every tensor alive after a step that was not there
before the engine, and what the collectives of one step sent.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpt import add_size, make_batches, make_model
from torch import nn

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]
Step = Callable[[Batches], float]
ADAM = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
CLIP = 1.0
SMALL_BYTES = 64


def config(engine: str, asked: argparse.Namespace) -> dict[str, Any]:
    """The JSON that deepspeed and this project both read."""
    params = {**ADAM, "betas": list(ADAM["betas"])}
    if engine.startswith("ds"):
        params["torch_adam"] = True
    return {
        "train_micro_batch_size_per_gpu": asked.micro,
        "gradient_accumulation_steps": asked.accum,
        "gradient_clipping": CLIP,
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": {"stage": int(engine[-1])},
        "bf16": {"enabled": asked.bf16},
        "steps_per_print": 10**9,
    }


class EngineStep:
    """deepspeed and this project are driven alike."""

    def __init__(self, framework: Any, model: nn.Module, asked: argparse.Namespace) -> None:
        self.engine, *_ = framework.initialize(
            model=model, model_parameters=list(model.parameters()), config=config(asked.engine, asked)
        )

    def __call__(self, batches: Batches, look: Callable[[], None] = lambda: None) -> float:
        """One step; `look` is called between the last backward and the update."""
        for index, (x, y) in enumerate(batches):
            loss = self.engine(x, y)
            self.engine.backward(loss)
            if index + 1 == len(batches):
                look()
            self.engine.step()
        return float(loss.detach())


def torch_step(model: nn.Module, asked: argparse.Namespace) -> Step:
    """A loop by hand around DDP, FSDP2, or nothing."""
    if asked.bf16 and asked.engine != "fsdp2m":
        model = model.bfloat16()
    if asked.engine == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif asked.engine.startswith("fsdp2"):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        low = torch.bfloat16 if asked.bf16 and asked.engine == "fsdp2m" else None
        options = {
            "mesh": init_device_mesh("cpu", (dist.get_world_size(),)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=low),
        }
        for block in model.blocks:
            fully_shard(block, **options)
        fully_shard(model, **options)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAM)

    def step(batches: Batches) -> float:
        optimizer.zero_grad()
        for x, y in batches:
            loss = model(x, y) / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach()) * len(batches)

    return step


def resident_MB(field: str) -> float:
    """VmRSS, what is resident now, or VmHWM, the most there was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")


def storages() -> dict[int, int]:
    """Bytes of every tensor storage alive, by address."""
    gc.collect()
    alive = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            alive[storage.data_ptr()] = storage.nbytes()
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine")
    add_size(parser)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    framework: Any = None
    if asked.engine.startswith("ds"):
        import logging

        import deepspeed as framework

        framework.utils.logging.logger.setLevel(logging.ERROR)
    elif asked.engine.startswith("ours"):
        import ds_core as framework
    base_MB = resident_MB("VmRSS")
    if asked.engine.startswith("ds"):
        framework.init_distributed("gloo")
    elif framework is None:
        dist.init_process_group("gloo")

    held_before = storages() if asked.count else {}
    model = make_model(asked)
    params = sum(p.numel() for p in model.parameters())
    step = EngineStep(framework, model, asked) if framework is not None else torch_step(model, asked)
    rank, world = dist.get_rank(), dist.get_world_size()
    batches = make_batches(asked, asked.steps, rank)
    result: dict[str, Any] = {"engine": asked.engine, "bf16": asked.bf16, "ranks": world, "params": params}
    if asked.count:
        result |= count(step, batches, held_before, asked)
    else:
        times = []
        for index in range(asked.steps):
            dist.barrier()
            began = time.perf_counter()
            loss = step(batches[index])
            times.append(time.perf_counter() - began)
        result |= over_ranks(times[asked.warmup :], resident_MB("VmHWM") - base_MB, loss, asked)
    if rank == 0:
        text = json.dumps(result)
        if asked.result:
            asked.result.write_text(text)
        else:
            print(text, flush=True)
    dist.barrier()
    os._exit(0)  # some engines take long to tear down, or hang


def over_ranks(times: list[float], peak_MB: float, loss: float, asked: argparse.Namespace) -> dict[str, Any]:
    """Median step of this rank, most memory of any rank, mean loss."""
    world = dist.get_world_size()
    everyone = [torch.zeros(2, dtype=torch.float64) for _ in range(world)]
    dist.all_gather(everyone, torch.tensor([peak_MB, loss], dtype=torch.float64))
    step_s = statistics.median(times)
    return {
        "step_s": step_s,
        "tokens_s": world * asked.accum * asked.micro * asked.seq / step_s,
        "peak_MB": max(float(row[0]) for row in everyone),
        "loss": sum(float(row[1]) for row in everyone) / world,
    }


def count(step: Any, batches: list[Batches], held_before: dict[int, int], asked: argparse.Namespace) -> dict[str, Any]:
    """Bytes held after the last backward of a step, and bytes that step sent.

    Returns:
        state_bytes: of every rank; tensors of at most `SMALL_BYTES` (step counts, stand-ins, a loss) are small_bytes.
        padded: elements of the model's flat buffers, which is what is held and sent.
        whole: elements of those that stage 3 keeps whole on every rank.
        sent: what each kind of collective sent; estimated_sent: what `ds_zero.estimate` says of their sum.
    """
    from ds_core import buffers, comm
    from ds_zero.estimate import estimate

    for batch in batches[:-1]:
        step(batch)
    data = {tensor.untyped_storage().data_ptr() for batch in batches for pair in batch for tensor in pair}
    held: dict[int, int] = {}

    def look() -> None:
        buffers.clear()  # kept for the next collective; no state
        held.update({at: size for at, size in storages().items() if at not in held_before and at not in data})

    comm.reset()
    step(batches[-1], look)
    report = comm.report()
    small = sum(size for size in held.values() if size <= SMALL_BYTES)
    everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, torch.tensor([sum(held.values()) - small], dtype=torch.int64))
    rows = [{"op": row.op, "scope": row.scope, "calls": row.calls, "bytes_sent": row.bytes_sent} for row in report.rows]
    space = next(part for part in step.engine.parts if part.name == "weights")._space
    wholes = [whole for flat in space.groups for whole in getattr(flat.values, "wholes", ()) if whole is not None]
    return {
        "state_bytes": [int(row) for row in everyone],
        "small_bytes": small,
        "padded": sum(flat.layout.numel for flat in space.groups),
        "whole": sum(whole.numel() for whole in wholes),
        "sent": rows,
        "estimated_sent": estimate(make_model(asked), config(asked.engine, asked), dist.get_world_size()).sent_bytes,
    }


main()
