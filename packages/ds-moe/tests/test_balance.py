"""Loads of experts: told to monitors, added up in one collective a step, and evened out by biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from moe_models import EXPERTS, FEATURES, Ffn, Net, batches, loss_of
from torch.utils.checkpoint import checkpoint

import ds_core
from ds_core import comm
from ds_core.testing import run_ranks
from ds_moe import MoE
from ds_moe.balance import MoeBalance, mean_rows
from ds_moe.gate import TopKGate
from ds_moe.load import Load, LoadReport
from ds_moe.routing import RouterPolicy, route

ROWS = 8


def make_engine(model: torch.nn.Module, ranks: int, micro_batches: int = 1, **config: Any) -> Any:
    settings = {
        "train_batch_size": ROWS,
        "gradient_accumulation_steps": micro_batches,
        "optimizer": {"type": "SGD", "params": {"lr": 1e-2}},
        **config,
    }
    return ds_core.initialize(model=model, config=settings)[0]


def pieces(engine: Any, micro_batches: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's micro-batches of the whole batch."""
    axes = engine.mesh.batch_axes
    rank, ranks = engine.mesh.rank(*axes), engine.mesh.size(*axes)
    x, y = (each.chunk(ranks)[rank] for each in batches(1, ROWS)[0])
    return list(zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True))


def train(ep_size: int, folder: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Two micro-batches of a step: what was reported, which collectives there were, and biases."""
    micro_batches = 2
    monitor = {} if folder is None else {"jsonl_monitor": {"enabled": True, "output_path": folder, "job_name": "moe"}}
    engine = make_engine(Net(ep_size, **settings), 2, micro_batches, **monitor)
    comm.reset()
    for x, y in pieces(engine, micro_batches):
        engine.backward(loss_of(engine(x), y))
        engine.step()
    part = next(part for part in engine.parts if isinstance(part, MoeBalance))
    found = {
        "reports": part.reports,
        "calls": comm.report().select(scope="moe_balance").calls,
        "bias": {n: g.expert_bias for n, g in engine.module.named_modules() if isinstance(g, TopKGate)},
    }
    engine.destroy()
    return found


def run(folder: str) -> dict[str, Any]:
    return {
        "heard": train(2, folder, {"k": 1, "drop_tokens": True, "min_capacity": 1}),
        "unheard": train(1, None, {}),
        "bias": train(2, None, {"balancing": "bias", "bias_update_rate": 0.25}),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("metrics")
    return run_ranks(run, 2, str(folder)), folder


def first_layer(**settings: Any) -> list[Any]:
    """What the gate of the first layer decides in one process, micro-batch by micro-batch of each rank."""
    model = Net(**settings)
    x = batches(1, ROWS)[0][0]
    return [model.moe.gate.route(torch.tanh(model.first(piece)).flatten(0, 1)) for piece in x.chunk(4)]


def test_loads_are_those_of_all_ranks_and_micro_batches(ranks: Any) -> None:
    routings = first_layer(k=1, drop_tokens=True, min_capacity=1)
    for found in ranks[0]:
        report = found["heard"]["reports"]["moe.gate"]
        assert report.counts == tuple(sum(each.counts for each in routings).tolist())
        assert report.dropped == sum(int((each.experts < 0).sum()) for each in routings) > 0
        assert report.balance == pytest.approx(sum(each.balance.item() for each in routings) / 4, rel=1e-6)
        assert report.z == pytest.approx(sum(each.z.item() for each in routings) / 4, rel=1e-6)
        assert 0 < report.entropy <= torch.log(torch.tensor(float(EXPERTS))).item()


def test_monitors_are_told_means_over_layers(ranks: Any) -> None:
    found, folder = ranks
    reports = list(found[0]["heard"]["reports"].values())
    lines = [json.loads(line) for path in Path(folder).rglob("*.jsonl") for line in path.read_text().splitlines()]
    told = {line["name"]: line["value"] for line in lines if line["name"].startswith("Train/MoE/")}
    assert told == pytest.approx({f"Train/MoE/{name}": value for name, value in mean_rows(reports)})
    assert sum(told[f"Train/MoE/load_share/expert_{e}"] for e in range(EXPERTS)) == pytest.approx(1.0)
    assert told["Train/MoE/max_over_mean_load"] >= 1.0


def test_one_small_collective_a_step_and_none_when_nobody_listens(ranks: Any) -> None:
    for found in ranks[0]:
        assert found["heard"]["calls"] == 1 and found["unheard"]["calls"] == 0
        assert found["bias"]["calls"] == 1 and not found["bias"]["reports"]


def test_biases_move_against_the_loads_of_all_ranks(ranks: Any) -> None:
    counts = sum(each.counts for each in first_layer(balancing="bias")).float()
    wanted = 0.25 * (counts.mean() - counts).sign()
    for found in ranks[0]:
        assert torch.equal(found["bias"]["bias"]["moe.gate"], wanted)
    assert wanted.any()


def test_biases_even_out_what_a_gate_prefers() -> None:
    torch.manual_seed(0)
    gate = TopKGate(FEATURES, EXPERTS, policy=RouterPolicy(balancing="bias", drop_tokens=False), bias_update_rate=0.02)
    x = torch.randn(256, FEATURES) + 2 * gate.wg.weight[1].detach().sign()
    first = gate.route(x).counts
    for _ in range(60):
        gate.update_bias(gate.route(x).counts)
    assert gate.route(x).counts.max() < 0.5 * first.max()


def test_a_bias_stays_exact_in_a_model_of_low_precision() -> None:
    engine = make_engine(Net(balancing="bias", bias_update_rate=1e-3), 1, bf16={"enabled": True})
    gate = engine.module.moe.gate
    gate.bias_steps += 2**32  # a bias of 1, to which bfloat16 cannot add 0.001
    for x, y in pieces(engine, 1):
        made, l_aux = engine(x.bfloat16())
        engine.backward(loss_of((made.float(), l_aux), y))
        engine.step()
    moved = gate.expert_bias - 1
    assert moved.any()
    torch.testing.assert_close(moved[moved != 0].abs(), torch.full_like(moved[moved != 0], 1e-3), rtol=1e-3, atol=0)


def test_a_step_that_is_left_out_moves_no_bias() -> None:
    engine = make_engine(Net(balancing="bias"), 1, fp16={"enabled": True, "loss_scale": 1.0})
    for x, y in pieces(engine, 1):
        made, l_aux = engine(x.half())
        engine.backward(loss_of((made.float(), l_aux), y) * float("inf"))
        engine.step()
    assert engine.skipped_steps == 1 and not engine.module.moe.gate.expert_bias.any()


def test_what_backward_computes_again_is_counted_once(tmp_path: Path) -> None:
    class Checkpointed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.moe = MoE(FEATURES, Ffn, EXPERTS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(lambda given: self.moe(given).output, x, use_reentrant=False)

    sink = {"jsonl_monitor": {"enabled": True, "output_path": str(tmp_path), "job_name": "moe"}}
    engine = make_engine(Checkpointed(), 1, **sink)
    engine.backward(engine(torch.randn(ROWS, 3, FEATURES)).square().mean())
    engine.step()
    (report,) = next(part for part in engine.parts if isinstance(part, MoeBalance)).reports.values()
    assert sum(report.counts) == ROWS * 3
    engine.destroy()


def test_reports_are_read_from_whole_numbers() -> None:
    load = Load(3)
    routing = route(torch.eye(3).repeat(4, 1), RouterPolicy(min_capacity=1, random_selection=False), training=True)
    load.add(routing)
    assert not load.take(torch.device("cpu")).any()  # nobody listened
    load.is_heard = True
    load.add(routing)
    load.add(routing)
    report = load.read(load.take(torch.device("cpu")).tolist())
    assert report.counts == (8, 8, 8) and report.max_over_mean == 1.0 and report.dropped_share == 0.0
    assert report.balance == pytest.approx(1.0) and report.z == pytest.approx(routing.z.item(), rel=1e-6)
    assert LoadReport((0, 0), 0, 0.0, 0.0, 0.0).max_over_mean == 0.0
