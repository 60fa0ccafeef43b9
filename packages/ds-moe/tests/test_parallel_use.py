"""Experts over ranks in use: loads that leave ranks idle, construction in shards, precision, and places in the mesh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from moe_models import EXPERTS, FEATURES, Net, batches, loss_of
from torch.utils.checkpoint import checkpoint

import ds_core
from ds_core import comm
from ds_core.testing import run_ranks
from ds_moe import MoE

RANKS, ROWS = 2, 8
DROPPING = {
    "k": 1,
    "drop_tokens": True,
    "use_rts": False,
    "capacity_factor": 0.8,
    "min_capacity": 1,
    "use_residual": True,
    "z_loss_coef": 0.1,
}


def make_engine(model: torch.nn.Module, stage: int, **config: Any) -> Any:
    settings = {
        "train_batch_size": ROWS,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "zero_optimization": {"stage": stage, "param_persistence_threshold": 8},
        **config,
    }
    return ds_core.initialize(model=model, config=settings)[0]


def train(engine: Any, steps: int = 2) -> dict[str, torch.Tensor]:
    """This rank's parameters after some steps."""
    axes = engine.mesh.batch_axes
    rank, ranks = engine.mesh.rank(*axes), engine.mesh.size(*axes)
    for x, y in batches(steps, ROWS):
        made, l_aux = engine(x.chunk(ranks)[rank].to(next(engine.module.parameters()).dtype))
        engine.backward(loss_of((made.float(), l_aux), y.chunk(ranks)[rank]))
        engine.step()
    with engine.gathered(list(engine.module.parameters())):
        return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def skewed(ep_size: int) -> Net:
    """All tokens go to the first two experts, which are on the first rank."""
    model = Net(ep_size, balancing="none", num_expert_groups=2, num_limited_groups=1)
    with torch.no_grad():
        for layer in (model.moe, model.stacked):
            layer.gate.wg.weight.zero_()  # equal scores: the lowest numbers win
        model.moe.gate.wg.weight.requires_grad_(False)
        model.stacked.gate.wg.weight.requires_grad_(False)
    return model


def idle(stages: tuple[int, ...]) -> list[Any]:
    """With a rank whose experts nobody asks for."""
    found = []
    for stage in stages:
        engine = make_engine(skewed(2), stage)
        found.append(train(engine))
        engine.destroy()
    return found


def in_shards() -> dict[str, torch.Tensor]:
    """Constructed in shards."""
    from ds_zero import Init

    with Init():
        model = Net(2)
    engine = make_engine(model, 3)
    found = train(engine)
    engine.destroy()
    return found


def dropping() -> dict[str, torch.Tensor]:
    engine = make_engine(Net(2, **DROPPING), 2)
    found = train(engine)
    engine.destroy()
    return found


class Recomputed(Net):
    """Its first mixture is run again in backward."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.first(x))
        made, one, _ = checkpoint(self.moe, x, use_reentrant=False)
        x = x + made
        made, two, _ = self.stacked(x)
        return self.last(x + made), one + two


def recomputed() -> dict[str, torch.Tensor]:
    engine = make_engine(Recomputed(2), 3)
    found = train(engine)
    engine.destroy()
    return found


def in_low_precision() -> dict[str, torch.Tensor]:
    engine = make_engine(Net(2), 2, bf16={"enabled": True})
    found = train(engine)
    engine.destroy()
    return found


def no_tokens() -> tuple[float, int]:
    """A layer alone, to which the last rank brings no token at all."""
    engine = make_engine(MoE(FEATURES, torch.nn.Linear(FEATURES, FEATURES), EXPERTS, 2), 0)
    rows = 0 if engine.mesh.rank("expert") == 1 else 5
    output, l_aux, counts = engine(torch.ones(rows, FEATURES))
    engine.backward(output.sum() + l_aux)
    engine.step()
    engine.destroy()
    return float(l_aux.detach()), int(counts.sum())


def forward_bytes() -> tuple[int, int]:
    """What a layer in an engine sends, and what theory says: rows that leave and rows that come, twice each."""
    engine = make_engine(MoE(FEATURES, torch.nn.Linear(FEATURES, FEATURES), EXPERTS, 2, drop_tokens=False), 0)
    rank = engine.mesh.rank("expert")
    x = batches(2, ROWS)[rank][0].flatten(0, 1).requires_grad_()
    comm.reset()
    output, l_aux, counts = engine(x)
    (output.sum() + l_aux).backward()
    sent = comm.report().select(op="all_to_all").bytes_sent
    asked = torch.empty(2, EXPERTS, dtype=torch.int64)
    comm.all_gather_into_tensor(asked, counts.unsqueeze(0))
    each = EXPERTS // 2
    leave = int(asked[rank].sum() - asked[rank, rank * each : (rank + 1) * each].sum())
    come = int(asked[1 - rank, rank * each : (rank + 1) * each].sum())
    return sent, EXPERTS * 8 // 2 + 2 * (leave + come) * FEATURES * 4


def everything() -> dict[str, Any]:
    return {
        "idle": idle((0, 1, 3)),
        "in_shards": in_shards(),
        "dropping": dropping(),
        "recomputed": recomputed(),
        "in_low_precision": in_low_precision(),
        "no_tokens": no_tokens(),
        "bytes": forward_bytes(),
    }


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(everything, RANKS)


def plain(model: Net) -> dict[str, torch.Tensor]:
    """Two steps of one process, the batch in as many pieces."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for x, y in batches(2, ROWS):
        pairs = zip(x.chunk(RANKS), y.chunk(RANKS), strict=True)
        torch.stack([loss_of(model(mine), target) for mine, target in pairs]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(values: list[dict[str, torch.Tensor]], want: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    for rank, held in enumerate(values):
        for name, value in held.items():
            part = want[name].chunk(RANKS)[rank] if name.startswith("stacked.experts.") else want[name]
            torch.testing.assert_close(
                value.float(), part, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(("place", "stage"), [(0, 0), (1, 1), (2, 3)])
def test_a_rank_whose_experts_nobody_asks_for_trains_along(found: Any, place: int, stage: int) -> None:
    assert_same([rank["idle"][place] for rank in found], plain(skewed(1)))
    before = dict(skewed(1).named_parameters())
    assert torch.equal(found[1]["idle"][place]["moe.experts.3.up.weight"], before["moe.experts.3.up.weight"])


def test_a_rank_that_brings_no_token_takes_part(found: Any) -> None:
    assert found[0]["no_tokens"][1] == 5 and found[1]["no_tokens"] == (0.0, 0)


def test_a_model_may_be_constructed_in_shards(found: Any) -> None:
    assert_same([rank["in_shards"] for rank in found], plain(Net(1)))


def test_tokens_above_the_capacity_are_dropped_as_in_one_process(found: Any) -> None:
    model = Net(1, **DROPPING)
    x = batches(1, ROWS)[0][0].chunk(RANKS)[0]
    assert (model.moe.gate.route(torch.tanh(model.first(x)).flatten(0, 1)).experts < 0).any()
    assert_same([rank["dropping"] for rank in found], plain(model))


def test_a_layer_may_be_run_again_in_backward(found: Any) -> None:
    assert_same([rank["recomputed"] for rank in found], plain(Net(1)))


def test_low_precision_is_near_full_precision(found: Any) -> None:
    values = [rank["in_low_precision"] for rank in found]
    assert values[0]["stacked.experts.w1"].dtype == torch.bfloat16
    assert_same(values, plain(Net(1)), tolerance=0.02)


def test_an_engine_sends_the_bytes_that_theory_says(found: Any) -> None:
    for rank in found:
        assert rank["bytes"][0] == rank["bytes"][1] > 0


def placed(around_data: bool) -> tuple[Any, ...]:
    engine = make_engine(Net(2), 1, use_data_before_expert_parallelism=around_data)
    kept = [name for name, _ in engine.module.moe.experts.named_children()]
    train(engine, 1)
    found = engine.mesh.ranks("expert"), engine.mesh.ranks("data"), kept, engine.get_global_grad_norm()
    engine.destroy()
    return found


def both_places() -> tuple[Any, ...]:
    return placed(False), placed(True)


def test_neighbours_share_experts_or_work_on_other_data() -> None:
    found = run_ranks(both_places, 4)
    assert [rank[0][0] for rank in found] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert [rank[1][0] for rank in found] == [(0, 2), (1, 3), (0, 2), (1, 3)]
    assert [rank[0][2][0] for rank in found] == ["0", "2", "0", "2"]
    assert [rank[1][2][0] for rank in found] == ["0", "0", "2", "2"]
    norms = {round(rank[way][3], 5) for rank in found for way in (0, 1)}
    assert len(norms) == 1
