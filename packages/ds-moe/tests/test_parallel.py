"""Experts over ranks train as one process does: weights, norms and losses, at every stage of ZeRO."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from moe_models import Net, batches, loss_of

import ds_core
from ds_core.errors import ConfigError
from ds_core.testing import run_ranks
from ds_moe.axis import axis_requests
from ds_moe.dispatch import Groups
from ds_moe.errors import MoeConfigError
from ds_moe.experts import Experts
from ds_moe.layer import MoE
from ds_moe.parallel import layers_of

RANKS, STEPS, ROWS, CLIP = 4, 3, 8, 0.05
EP_SIZES = (2, 4)
STAGES = (0, 1, 2, 3)

Values = dict[str, torch.Tensor]


@functools.cache
def plain() -> tuple[Values, list[float], list[float]]:
    """Weights, norms and losses of one process on the whole batch, in plain PyTorch."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    norms, losses = [], []
    for x, y in batches(STEPS, ROWS):
        pieces = zip(x.chunk(RANKS), y.chunk(RANKS), strict=True)
        loss = torch.stack([loss_of(model(mine), target) for mine, target in pieces]).mean()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, norms, losses


def make_engine(model: torch.nn.Module, stage: int, **config: Any) -> Any:
    settings = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // RANKS,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-2}},
        "zero_optimization": {"stage": stage, "param_persistence_threshold": 8},
        **config,
    }
    return ds_core.initialize(model=model, config=settings)[0]


def train(engine: Any, steps: int = STEPS) -> tuple[list[float], list[float]]:
    """Norms and losses of this rank."""
    axes = engine.mesh.batch_axes
    rank, ranks = engine.mesh.rank(*axes), engine.mesh.size(*axes)
    norms, losses = [], []
    for x, y in batches(steps, ROWS):
        loss = loss_of(engine(x.chunk(ranks)[rank]), y.chunk(ranks)[rank])
        engine.backward(loss)
        engine.step()
        norms.append(engine.get_global_grad_norm())
        losses.append(loss.item())
    return norms, losses


def values_of(engine: Any) -> dict[str, tuple[torch.Tensor, int]]:
    """This rank's parameters, and with which expert those that are cut begin."""
    found = {}
    with engine.gathered(list(engine.module.parameters())):
        for name, parameter in engine.module.named_parameters():
            is_cut = name.startswith("stacked.experts.") and engine.mesh.size("expert") > 1
            first = engine.mesh.rank("expert") * parameter.shape[0] if is_cut else 0
            found[name] = parameter.detach().clone(), first
    return found


def run() -> dict[tuple[int, int], Any]:
    found = {}
    for ep_size in EP_SIZES:
        for stage in STAGES:
            engine = make_engine(Net(ep_size), stage, gradient_clipping=CLIP)
            told = train(engine)
            found[ep_size, stage] = values_of(engine), told
            engine.destroy()
    return found


@pytest.fixture(scope="module")
def trained() -> list[dict[tuple[int, int], Any]]:
    return run_ranks(run, RANKS)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ep_size", EP_SIZES)
def test_it_trains_as_one_process_does(trained: list[Any], ep_size: int, stage: int) -> None:
    expected, norms, losses = plain()
    held: set[str] = set()
    for rank in trained:
        values, (mine, _) = rank[ep_size, stage]
        assert mine == pytest.approx(norms, rel=2e-6)
        assert min(mine) > CLIP  # so clipping was put to work
        held |= values.keys()
        for name, (value, first) in values.items():
            part = expected[name][first : first + value.shape[0]] if value.dim() else expected[name]
            torch.testing.assert_close(value, part, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert held == expected.keys()
    told = torch.tensor([rank[ep_size, stage][1][1] for rank in trained]).mean(0)
    torch.testing.assert_close(told, torch.tensor(losses), rtol=1e-5, atol=0)


@pytest.mark.parametrize("ep_size", EP_SIZES)
def test_stages_of_zero_agree_to_the_bit(trained: list[Any], ep_size: int) -> None:
    for rank in trained:
        values, told = rank[ep_size, 0]
        for stage in STAGES[1:]:
            others, theirs = rank[ep_size, stage]
            assert told[1] == theirs[1]
            assert all(torch.equal(others[name][0], value) for name, (value, _) in values.items())


def test_a_rank_keeps_its_share_of_the_experts_only(trained: list[Any]) -> None:
    for place, rank in enumerate(trained):
        values = rank[2, 1][0]
        kept = sorted({name.split(".")[2] for name in values if name.startswith("moe.experts.")})
        assert kept == [str(2 * (place % 2)), str(2 * (place % 2) + 1)]
        assert values["stacked.experts.w1"][0].shape[0] == 2


def test_layers_that_disagree_about_ranks_are_refused_by_name() -> None:
    with pytest.raises(MoeConfigError, match="ep_size of a is 2, and ep_size of b is 4"):
        axis_requests({"ep_size of a": 2, "ep_size of c": 1, "ep_size of b": 4})
    assert axis_requests({"ep_size of a": 1}) == []


def test_more_ranks_than_the_job_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="expert 4 = 4, which does not divide 1 ranks"):
        ds_core.initialize(model=Net(4), config={"train_batch_size": 1})


def test_experts_that_do_not_divide_over_ranks_are_refused() -> None:
    with pytest.raises(MoeConfigError, match="num_experts=4 and ep_size=3"):
        MoE(8, torch.nn.Linear(8, 8), 4, 3)


def test_layers_are_found_by_name() -> None:
    assert list(layers_of(Net())) == ["moe", "stacked"]


def test_forgetting_experts_keeps_the_names_of_the_others() -> None:
    experts = Experts(lambda: torch.nn.Linear(2, 2), 4)
    third = experts.get_submodule("2").weight
    experts.keep(2, 2)
    assert [name for name, _ in experts.named_children()] == ["2", "3"]
    assert experts.get_submodule("2").weight is third
    experts.keep(3, 1)
    assert [name for name, _ in experts.named_children()] == ["3"]
    experts = Experts(lambda: torch.nn.Linear(2, 2), 2)
    assert experts(torch.randn(3, 2), Groups((1, 2), torch.tensor([0, 1, 3]))).shape == (3, 2)
