"""Experts of Hugging Face models over ranks train as one process does that has the whole batch."""

from __future__ import annotations

from typing import NamedTuple

import expert_models
import pytest
import torch
from torch import nn

import ds_core
from ds_core import comm
from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks

ROWS, STEPS = 8, 3


class Case(NamedTuple):
    """A family, its ranks a layer's experts are divided over, and the ZeRO stage."""

    family: str
    size: int
    stage: int


CASES = {
    2: [
        Case("mixtral", 1, 3),
        Case("deepseek_v3", 2, 3),
        Case("gpt_oss", 2, 1),
    ],
    4: [
        *(Case("mixtral", 2, stage) for stage in range(4)),
        Case("mixtral", 4, 3),
        Case("qwen2_moe", 4, 1),
        Case("qwen3_moe", 2, 3),
        Case("deepseek_v2", 4, 2),
        Case("deepseek_v3", 2, 2),
        Case("olmoe", 4, 0),
    ],
}


def build(case: Case, model: nn.Module | None = None, **changes):
    config = {
        "train_batch_size": ROWS,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "zero_optimization": {"stage": case.stage, "param_persistence_threshold": 64},
        "expert_parallel": {"enabled": True, "autoep_size": case.size},
        **changes,
    }
    return ds_core.initialize(model=model or expert_models.make(case.family), config=config)[0]


def share(step: int) -> torch.Tensor:
    """This rank's rows of a step's batch."""
    return expert_models.tokens(ROWS, step).chunk(comm.get_world_size())[comm.get_rank()]


def train(engine, steps=range(STEPS)) -> list[float]:
    losses = []
    for step in steps:
        tokens = share(step)
        loss = engine(input_ids=tokens, labels=tokens).loss
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    return losses


def values(engine) -> dict[str, torch.Tensor]:
    """What this rank has of every parameter, experts of other ranks left out."""
    parameters = dict(engine.module.named_parameters())
    with engine.gathered(list(parameters.values())):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def alone(family: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and parameters of plain torch with the original model and all rows."""
    model = expert_models.make(family)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(STEPS):
        tokens = expert_models.tokens(ROWS, step)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def _all_trained(cases: list[Case]):
    results = []
    for case in cases:
        engine = build(case)
        results.append((train(engine), values(engine), engine.mesh.rank("expert")))
        engine.destroy()
    return results


@pytest.fixture(scope="module")
def trained() -> dict[Case, list]:
    """Results of every rank, by case."""
    found = {}
    for world, cases in CASES.items():
        ranks = run_ranks(_all_trained, world, cases)
        found.update({(world, case): [rank[i] for rank in ranks] for i, case in enumerate(cases)})
    return found


@pytest.fixture(scope="module")
def references() -> dict[str, tuple]:
    return {family: alone(family) for family in sorted({case.family for cases in CASES.values() for case in cases})}


@pytest.mark.parametrize(
    ("world", "case"), [(world, case) for world, cases in CASES.items() for case in cases], ids=str
)
def test_training_is_that_of_one_process(trained, references, world, case):
    losses, wanted = references[case.family]
    ranks = trained[world, case]
    for step, loss in enumerate(losses):
        assert sum(rank[0][step] for rank in ranks) / world == pytest.approx(loss, rel=1e-6)
    for _, found, place in ranks:
        for name, tensor in wanted.items():
            is_divided = ".mlp.experts." in name and case.size > 1
            mine = tensor.chunk(case.size)[place] if is_divided else tensor
            assert found[name].shape == mine.shape, name
            assert torch.allclose(found[name], mine, rtol=0, atol=1e-6 * float(tensor.abs().max())), name


def _recomputed() -> list[float]:
    model = expert_models.make("mixtral")
    model.gradient_checkpointing_enable()
    return train(build(Case("mixtral", 2, 2), model))


def test_blocks_may_be_recomputed_in_backward(references):
    ranks = run_ranks(_recomputed, 2)
    for step, loss in enumerate(references["mixtral"][0]):
        assert sum(rank[step] for rank in ranks) / 2 == pytest.approx(loss, rel=1e-6)


def _divided_memory() -> tuple[int, int]:
    engine = build(Case("mixtral", 2, 0))
    return (
        sum(p.numel() for n, p in engine.module.named_parameters() if "experts" in n),
        sum(p.numel() for n, p in expert_models.make("mixtral").named_parameters() if "experts" in n),
    )


def test_a_rank_keeps_only_its_experts():
    for mine, all_of_them in run_ranks(_divided_memory, 2):
        assert mine * 2 == all_of_them


def _counts() -> tuple[list[int], int]:
    engine = build(Case("mixtral", 2, 0))
    engine.eval()
    with torch.no_grad():
        engine(input_ids=share(0))
    counts = engine.module.model.layers[0].mlp.experts._last_counts
    return counts.tolist(), share(0).numel() * 2


def test_counts_are_of_all_experts_and_this_rank_s_tokens():
    for counts, choices in run_ranks(_counts, 2):
        assert len(counts) == 4 and sum(counts) == choices


def _monitored(folder: str) -> list[int]:
    engine = build(Case("mixtral", 2, 0), jsonl_monitor={"enabled": True, "output_path": folder})
    train(engine, range(1))
    (part,) = (part for part in engine.parts if part.name == "moe_balance")
    found = {name: sum(report.counts) for name, report in part.reports.items()}
    engine.destroy()
    assert sorted(found) == [f"model.layers.{i}.mlp.experts" for i in range(2)]
    return list(found.values())


def test_monitors_hear_of_loads_over_all_ranks(tmp_path):
    for counts in run_ranks(_monitored, 2, str(tmp_path)):
        assert counts == [expert_models.tokens(ROWS).numel() * 2] * 2


def _own_optimizers() -> list[list[float]]:
    found = []
    for takes_parameters in (True, False):
        model = expert_models.make("mixtral")
        given = {"model_parameters": list(model.parameters())}
        section = {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}}
        if not takes_parameters:
            given, section = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)}, {}
        config = {
            "train_batch_size": ROWS,
            "gradient_clipping": 1.0,
            "expert_parallel": {"enabled": True, "autoep_size": 2},
            **section,
        }
        engine = ds_core.initialize(model=model, config=config, **given)[0]
        found.append(train(engine))
        engine.destroy()
    return found


def test_parameters_and_optimizers_of_the_caller_keep_their_meaning(references):
    for losses in zip(*run_ranks(_own_optimizers, 2), strict=True):
        for step, loss in enumerate(references["mixtral"][0]):
            assert sum(rank[step] for rank in losses) / 2 == pytest.approx(loss, rel=1e-6)
