"""Estimates of divided models equal, byte for byte, what each rank of a run holds: stages, experts, and both."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import staged_model
import torch
from moe_models import FEATURES, Ffn, Net, batches, loss_of
from test_estimate import gradients_held, optimizer_held, storages
from torch import nn

import ds_core
from ds_core.cli import main
from ds_core.testing import run_ranks
from ds_moe import MlpExperts, MoE
from ds_pipeline import LayerSpec, PipelineModule
from ds_zero.estimate import estimate

pytestmark = pytest.mark.ranks

KINDS = ("weights", "small weights", "gradients", "master weights", "optimizer states")
ROWS = 8


def config_of(stage: int, **sections: Any) -> dict[str, Any]:
    return {
        "train_batch_size": ROWS,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "param_persistence_threshold": 20},
        **sections,
    }


class Mixed(nn.Module):
    """Stacked experts, or experts as modules, one tensor in and one out."""

    def __init__(self, is_stacked: bool) -> None:
        super().__init__()
        expert: Any = MlpExperts(4, FEATURES, 24) if is_stacked else Ffn
        self.moe = MoE(FEATURES, expert, 4, 2, k=2, drop_tokens=False, top2_2nd_expert_sampling=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.moe(x).output
        return x + made


def model_of(kind: str, stages: int) -> nn.Module:
    """A row of layers, with a tied embedding or experts; a language model; layers of experts; a mixture."""
    if kind == "tied":
        return staged_model.make("tied", stages)
    if kind == "mixed":
        layers = [LayerSpec(Mixed, True), LayerSpec(nn.Linear, FEATURES, FEATURES), LayerSpec(Mixed, False)]
        return PipelineModule(layers, stages, loss_fn=nn.functional.mse_loss, partition_method="uniform")
    if kind == "experts":
        return Net(2)
    if kind == "mixtral":
        import expert_models  # with transformers, which takes its time, as the next does

        return expert_models.make(kind)
    import staged_hugging_face

    return staged_hugging_face.make(kind)  # type: ignore[no-any-return]


CASES: list[tuple[str, int, dict[str, Any]]] = [
    *(("tied", 2, config_of(stage, gradient_accumulation_steps=2)) for stage in (0, 1, 2)),
    ("tied", 4, config_of(1, gradient_accumulation_steps=4)),
    ("tied", 2, config_of(1, gradient_accumulation_steps=2, pipeline={"schedule": "zbv", "partition": "uniform"})),
    ("mixed", 2, config_of(1, gradient_accumulation_steps=2)),
    *((kind, 2, config_of(1, gradient_accumulation_steps=2, pipeline={"stages": 2})) for kind in ("qwen2", "llama")),
    *(("experts", 1, config_of(stage)) for stage in (0, 1, 2, 3)),
    ("mixtral", 1, config_of(2, expert_parallel={"enabled": True, "autoep_size": 4})),
    ("mixtral", 1, config_of(3, expert_parallel={"enabled": True, "autoep_size": 2})),
]


def batch_of(kind: str, engine: Any, rows: int) -> Any:
    """A micro-batch of this rank."""
    if kind == "tied":
        return tuple(each[:1].expand(rows, -1) for each in next(staged_model.batches()))
    if kind == "mixed":
        x = torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(0)).bfloat16()
        return x, x
    tokens = torch.randint(2, 30, (rows, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "labels": tokens}


def held(kind: str, stages: int, config: dict[str, Any]) -> dict[str, int]:
    """Bytes by kind on this rank, in a step."""
    engine = ds_core.initialize(model=model_of(kind, stages), config=config)[0]
    space = next(part for part in engine.parts if part.name == "weights")._space
    most = 0

    def watch(*_: Any) -> None:
        nonlocal most
        most = max(most, gradients_held(space))

    rows = engine.train_micro_batch_size_per_gpu()
    if kind == "experts":
        x, y = (each[:rows] for each in batches(1, ROWS)[0])
        made, l_aux = engine(x.bfloat16())
        engine.backward(loss_of((made.float(), l_aux), y))
        watch()
        engine.step()
    elif stages == 1:
        engine.backward(engine(**batch_of(kind, engine, rows)).loss)
        watch()
        engine.step()
    else:
        before = engine.end_micro_batch
        engine.end_micro_batch = lambda *given: (watch(), before(*given))[1]
        engine.train_batch(itertools.repeat(batch_of(kind, engine, rows)))
    shards, wholes = [], []
    for flat in space.groups:
        if hasattr(flat.values, "shards"):
            for shard, whole in zip(flat.values.shards, flat.values.wholes, strict=True):
                (shards if whole is None else wholes).append(shard if whole is None else whole)
        else:
            shards.append(flat.values.tensor)
    found = {"weights": storages(shards), "small weights": storages(wholes), "gradients": most}
    found.update(optimizer_held(engine))
    engine.destroy()
    return {name: found[name] for name in KINDS}


@pytest.mark.parametrize("case", CASES, ids=[f"{kind}-{number}" for number, (kind, _, _) in enumerate(CASES)])
def test_every_rank_holds_what_the_estimate_says(case: tuple[str, int, dict[str, Any]]) -> None:
    kind, stages, config = case
    for rank, found in enumerate(run_ranks(held, 4, *case)):
        with torch.device("meta"):
            model = model_of(kind, stages)
        plan = estimate(model, config, 4, rank=rank)
        assert {kind: plan.bytes_of(kind) for kind in KINDS} == found, rank
        assert plan.place
        assert not plan.sent


def test_the_command_has_every_stage_and_plans_for_the_fullest(tmp_path: Path, capsys: Any) -> None:
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW"}, "pipeline": {"stages": 2}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "zero_optimization": {"stage": 1}}))
    arguments = ["plan", str(tmp_path / "config.json"), "--model", "staged_model:make_two", "--world", "4"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "pipe 0" in shown and "pipe 1" in shown
    plans = [estimate(staged_model.make_two(), str(tmp_path / "config.json"), 4, rank=rank) for rank in (0, 2)]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["totals"]["device_peak_bytes"] == max(plan.peak_bytes for plan in plans)
    assert main([*arguments, "--json", "--rank", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["numel"] == plans[1].numel
