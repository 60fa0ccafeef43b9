"""Experts in pipeline stages: both divide one model, and it trains as in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ds_core
from ds_core import comm
from ds_core.checkpoint import CheckpointReader
from ds_core.testing import run_ranks
from ds_moe import MlpExperts, MoE
from ds_moe.balance import MoeBalance
from ds_pipeline import LayerSpec, PipelineModule

FEATURES, EXPERTS, ROWS, MICRO_BATCHES, STEPS = 16, 4, 16, 4, 2


class Mixed(nn.Module):
    """A residual mixture, one tensor in and one out."""

    def __init__(self, ep_size: int, kind: str) -> None:
        super().__init__()
        expert: Any = MlpExperts(EXPERTS, FEATURES, 24) if kind == "stacked" else _linear
        self.moe = MoE(
            FEATURES, expert, EXPERTS, ep_size, k=2, drop_tokens=False, top2_2nd_expert_sampling=False, balancing="none"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.moe(torch.tanh(x)).output
        return x + made


def _linear() -> nn.Module:
    return nn.Linear(FEATURES, FEATURES)


def layers(ep_size: int) -> list[LayerSpec]:
    dense = LayerSpec(nn.Linear, FEATURES, FEATURES)
    return [dense, LayerSpec(Mixed, ep_size, "modules"), dense, LayerSpec(Mixed, ep_size, "stacked"), dense]


def make_engine(stages: int, ep_size: int, **sections: Any) -> Any:
    model = PipelineModule(
        layers(ep_size), num_stages=stages, loss_fn=nn.functional.mse_loss, seed_layers=True, partition_method="uniform"
    )
    config = {
        "train_batch_size": ROWS,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-2}},
        "gradient_clipping": 0.1,
        "zero_optimization": {"stage": 1},
        **sections,
    }
    return ds_core.initialize(model=model, config=config)[0]


def train(stages: int, ep_size: int, folder: str) -> tuple[list[float], float]:
    """Losses and the last norm; saves at the end."""
    engine = make_engine(stages, ep_size)
    rank, ranks = engine.mesh.rank(*engine.mesh.batch_axes), engine.mesh.size(*engine.mesh.batch_axes)
    generator = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(STEPS):
        x, y = (torch.randn(ROWS, FEATURES, generator=generator) for _ in range(2))
        mine = [each.chunk(ranks)[rank].chunk(MICRO_BATCHES) for each in (x, y)]
        losses.append(float(engine.train_batch(iter(zip(*mine, strict=True)))))
    norm = engine.get_global_grad_norm()
    engine.save_checkpoint(folder, tag="t")
    engine.save_16bit_model(f"{folder}/weights")
    engine.destroy()
    return losses, norm


@pytest.mark.ranks
def test_stages_and_experts_train_and_save_as_one_process(tmp_path: Path) -> None:
    ((losses, norm),) = run_ranks(train, 1, 1, 1, str(tmp_path / "one"))
    for rank in run_ranks(train, 4, 2, 2, str(tmp_path / "many")):
        assert rank[0] == pytest.approx(losses, rel=1e-5) and rank[1] == pytest.approx(norm, rel=1e-5)
    one, many = (CheckpointReader(tmp_path / name / "t") for name in ("one", "many"))
    names, others = ({name for name in each.keys() if name.startswith("model/")} for each in (one, many))  # noqa: SIM118
    assert names == others and "model/layers.1.moe.experts.3.weight" in names
    weights = load_file(tmp_path / "many" / "weights" / "model.safetensors")
    for name in names:
        torch.testing.assert_close(many.full(name), one.full(name), rtol=1e-4, atol=1e-5)
        assert torch.equal(weights[name.removeprefix("model/")].float(), many.full(name))


def reported(stages: int, ep_size: int, folder: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Loads of every layer in one step, as this rank knows them, and the collectives they took."""
    monitor = {"enabled": True, "output_path": folder, "job_name": f"{stages}x{ep_size}"}
    engine = make_engine(stages, ep_size, jsonl_monitor=monitor)
    rank, ranks = engine.mesh.rank(*engine.mesh.batch_axes), engine.mesh.size(*engine.mesh.batch_axes)
    x = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(3)).chunk(ranks)[rank].chunk(MICRO_BATCHES)
    comm.reset()
    engine.train_batch(iter([(each, each) for each in x]))
    (part,) = (part for part in engine.parts if isinstance(part, MoeBalance))
    found = {name: report.counts for name, report in part.reports.items()}
    calls = comm.report().select(scope="moe_balance").calls
    engine.destroy()
    return found, calls


@pytest.mark.ranks
def test_monitors_are_told_the_loads_of_all_stages(tmp_path: Path) -> None:
    ((wanted, _),) = run_ranks(reported, 1, 1, 1, str(tmp_path))
    assert len(wanted) == 2
    for found, calls in run_ranks(reported, 4, 2, 2, str(tmp_path)):
        assert found == wanted
        assert calls == 1
    told = []
    for name in ("1x1", "2x2"):
        (path,) = (tmp_path / name).rglob("*.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        told.append({row["name"]: row["value"] for row in rows if "load" in row["name"]})
    assert told[0] == told[1]
    assert len(told[0]) == EXPERTS + 1
