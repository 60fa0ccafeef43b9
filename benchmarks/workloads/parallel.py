"""Trains a model that ranks divide, with one engine, and writes what a step took as JSON.

    torchrun --nproc-per-node W parallel.py ENGINE [--result FILE]

ENGINE: plain               one process, torch's AdamW, the whole batch
        torch-SCHEDULE      torch.distributed.pipelining: gpipe, 1f1b
        ds-1f1b             deepspeed's PipelineModule
        ours-SCHEDULE       ds-pipeline: gpipe, 1f1b, zb-h1
        ds-moe, ours-moe    a mixture of experts, its experts divided over all ranks; ZeRO stage 1

The pipelined model is the reference GPT, cut in as many stages as there are ranks; the mixture has experts in the place
of the feed-forward layer of every second block. All engines of a kind start from the same weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from gpt import Block, add_size, make_batches, make_model
from torch import nn

ADAM = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
EXPERTS, TOP_K = 8, 2

Step = Callable[[list[tuple[torch.Tensor, torch.Tensor]]], float]


class Embed(nn.Module):
    """The first layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tokens, self.positions = model.tokens, model.positions

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        return self.tokens(x_BT) + self.positions(torch.arange(x_BT.shape[1]))


class Head(nn.Module):
    """The last layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = model.norm, model.head

    def forward(self, h_BTD: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(h_BTD))


def loss_of(logits_BTV: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:
    """Mean loss over the next token."""
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), y_BT.flatten())


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The model as a list of layers."""
    return [Embed(model), *model.blocks, Head(model)]


def bounds(asked: argparse.Namespace, ranks: int) -> list[int]:
    """Even cuts through the blocks; the embedding goes with the first, the head with the last."""
    cuts = [1 + asked.layers * rank // ranks for rank in range(1, ranks)]
    return [0, *cuts, asked.layers + 2]


def config(asked: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The JSON that deepspeed and this project both read."""
    params = {**ADAM, "betas": list(ADAM["betas"])}
    if asked.engine.startswith("ds"):
        params["torch_adam"] = True
    return {
        "train_micro_batch_size_per_gpu": asked.micro,
        "gradient_accumulation_steps": asked.accum,
        "optimizer": {"type": "AdamW", "params": params},
        "gradient_clipping": 0.0,  # torch has none by default
        "steps_per_print": 10**9,
        **more,
    }


def plain(asked: argparse.Namespace) -> Step:
    """One process, the whole model."""
    model = make_model(asked)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAM)

    def step(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        total = 0.0
        for x, y in batches:
            loss = model(x, y) / len(batches)
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def torch_pipeline(asked: argparse.Namespace, schedule: str) -> Step:
    """torch.distributed.pipelining, with stages made by hand."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    rank, ranks = dist.get_rank(), dist.get_world_size()
    cuts = bounds(asked, ranks)
    part = nn.Sequential(*layers_of(make_model(asked))[cuts[rank] : cuts[rank + 1]])
    stage = PipelineStage(part, rank, ranks, torch.device("cpu"))
    kind = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[schedule]
    runner = kind(stage, n_microbatches=asked.accum, loss_fn=loss_of)
    optimizer = torch.optim.AdamW(part.parameters(), fused=True, **ADAM)

    def step(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        x, y = (torch.cat([pair[i] for pair in batches]) for i in (0, 1))
        losses: list[torch.Tensor] = []
        given = (x,) if rank == 0 else ()
        if rank == ranks - 1:
            runner.step(*given, target=y, losses=losses)
        else:
            runner.step(*given)
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).mean()) if losses else float("nan")

    return step


def engine_pipeline(asked: argparse.Namespace, schedule: str) -> Step:
    """deepspeed's or our PipelineModule and engine."""
    ranks = dist.get_world_size()
    options: dict[str, Any] = {"loss_fn": loss_of, "num_stages": ranks, "partition_method": "uniform"}
    layers = layers_of(make_model(asked))
    if asked.engine.startswith("ds"):
        import deepspeed
        from deepspeed.pipe import PipelineModule

        # Both are cut where its method cuts, which counts layers.
        model = PipelineModule(layers=layers, **options)
        engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config(asked))
    else:
        import ds_core
        from ds_pipeline import PipelineModule

        model = PipelineModule(layers=layers, **options)
        settings = config(asked, pipeline={"schedule": schedule})
        engine, *_ = ds_core.initialize(model=model, model_parameters=model.parameters(), config=settings)

    def step(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        return float(engine.train_batch(iter(batches)))

    return step


class Mixture(nn.Module):
    """The reference GPT with experts in the place of every second feed-forward layer."""

    def __init__(self, gpt: nn.Module, make_experts: Callable[[nn.Module, int], nn.Module], dim: int) -> None:
        super().__init__()
        self.embed, self.head = Embed(gpt), Head(gpt)
        self.blocks = gpt.blocks
        self.experts = nn.ModuleList()
        for block in list(gpt.blocks)[1::2]:
            expert = nn.Sequential(copy.deepcopy(block.up), nn.GELU(), copy.deepcopy(block.down))
            self.experts.append(make_experts(expert, dim))
            block.up, block.down = nn.Identity(), nn.Identity()

    def forward(self, x_BT: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:
        h_BTD, auxiliary = self.embed(x_BT), 0.0
        for number, block in enumerate(self.blocks):
            if number % 2 == 0:
                h_BTD = block(h_BTD)
                continue
            h_BTD, one = self._routed(block, self.experts[number // 2], h_BTD)
            auxiliary = auxiliary + one
        return loss_of(self.head(h_BTD), y_BT) + 0.01 * auxiliary

    @staticmethod
    def _routed(block: Block, experts: nn.Module, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, tokens, dim = x_BTD.shape
        q, k, v = (
            part.view(batch, tokens, block.heads, 64).transpose(1, 2)
            for part in block.qkv(block.norm_1(x_BTD)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, tokens, dim)
        x_BTD = x_BTD + block.out(attended)
        made, auxiliary, _ = experts(block.norm_2(x_BTD))
        return x_BTD + made, auxiliary


def engine_mixture(asked: argparse.Namespace) -> Step:
    """deepspeed's or our MoE layer, experts divided over all ranks."""
    ranks = dist.get_world_size()
    settings = config(asked, zero_optimization={"stage": 1})
    shape = {"num_experts": EXPERTS, "ep_size": ranks, "k": TOP_K, "capacity_factor": 2.0}
    shape["top2_2nd_expert_sampling"] = False  # draws random numbers, which no two implementations draw alike
    gpt = make_model(asked)
    if asked.engine.startswith("ds"):
        import deepspeed as framework
        from deepspeed.moe.layer import MoE
        from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as split

        model = Mixture(gpt, lambda expert, dim: MoE(hidden_size=dim, expert=expert, **shape), asked.dim)
        parameters: Any = split({"params": list(model.parameters()), "name": "all"})
    else:
        import ds_core as framework
        from ds_moe.layer import MoE

        model = Mixture(gpt, lambda expert, dim: MoE(hidden_size=dim, expert=expert, **shape), asked.dim)
        parameters = list(model.parameters())
    engine, *_ = framework.initialize(model=model, model_parameters=parameters, config=settings)

    def step(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        total = 0.0
        for x, y in batches:
            loss = engine(x, y)
            engine.backward(loss)
            engine.step()
            total += float(loss.detach()) / len(batches)
        return total

    return step


def step_of(asked: argparse.Namespace) -> Step:
    """The step of the engine that is asked for."""
    family, _, what = asked.engine.partition("-")
    if family == "plain":
        return plain(asked)
    if what == "moe":
        return engine_mixture(asked)
    return torch_pipeline(asked, what) if family == "torch" else engine_pipeline(asked, what)


def begin(asked: argparse.Namespace) -> None:
    """The process group, as the engine likes it."""
    if asked.engine.startswith("ds"):
        import logging

        import deepspeed

        deepspeed.utils.logging.logger.setLevel(logging.ERROR)
        deepspeed.init_distributed("gloo")
    elif asked.engine.startswith("ours"):
        import ds_core

        ds_core.init_distributed()
    elif asked.engine.startswith("torch"):
        dist.init_process_group("gloo")


def batches_of(asked: argparse.Namespace) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Micro-batches of every step; of a mixture each rank has its own."""
    rank = dist.get_rank() if asked.engine.endswith("moe") else 0
    yield from make_batches(asked, asked.steps + asked.warmup, rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine")
    add_size(parser)
    parser.set_defaults(accum=8, dim=256, vocab=2048, micro=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begin(asked)
    step = step_of(asked)
    took, loss = [], float("nan")
    for number, batches in enumerate(batches_of(asked)):
        began = time.perf_counter()
        loss = step(batches)
        if number >= asked.warmup:
            took.append(time.perf_counter() - began)
    is_last = not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
    if is_last:
        each = statistics.median(took)
        tokens = asked.micro * asked.accum * asked.seq
        answer = {"engine": asked.engine, "step_s": each, "tokens_s": tokens / each, "loss": loss}
        if asked.result:
            asked.result.write_text(json.dumps(answer))
        else:
            print(json.dumps(answer))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
