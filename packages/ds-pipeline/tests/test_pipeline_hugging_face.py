"""Causal language models of transformers in stages, from the config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from staged_hugging_face import batches, make, train_all
from staged_model import assert_same, settings
from torch import nn

import ds_core
from ds_core.errors import ModelError
from ds_core.testing import run_ranks
from ds_pipeline.anatomy import examine

pytestmark = pytest.mark.ranks

FAMILIES = ("llama", "gpt2", "qwen2")


def cases(micro_batches: int, **pipeline: Any) -> list[Any]:
    """Every family, with a mask and without."""
    sections = {"pipeline": pipeline} if pipeline else {}
    return [(settings(micro_batches, **sections), family, masked) for family in FAMILIES for masked in (False, True)]


def test_any_schedule_gives_the_numbers_of_the_whole_model() -> None:
    """With one micro-batch, for those of a tied head are added in another order."""
    whole = run_ranks(train_all, 1, cases(1))[0]
    for pipeline in ({"stages": 2}, {"stages": 2, "schedule": "zbv", "activation_checkpoint_interval": 1}):
        found = run_ranks(train_all, 2, cases(1, **pipeline))
        for runs, reference in zip(zip(*found, strict=True), whole, strict=True):
            assert_same(list(runs), reference)


def test_untied_weights_over_micro_batches_and_four_stages() -> None:
    whole = run_ranks(train_all, 1, cases(4)[:2])[0]
    found = run_ranks(train_all, 4, cases(4, stages=4, schedule="zb-h1")[:2])
    for runs, reference in zip(zip(*found, strict=True), whole, strict=True):
        assert_same(list(runs), reference)


def numels_of_two_stages() -> dict[str, Any]:
    """What a rank holds."""
    model = make("qwen2")
    engine = ds_core.initialize(model=model, config=settings(1, pipeline={"stages": 2}))[0]
    alive = sum(p.numel() for p in model.parameters())
    held = {name: p.numel() for name, p in engine.module.named_parameters()}
    assert alive == sum(held.values())
    assert engine.module.config is model.config
    return {"numels": held, "stage": engine.get_pipeline_parallel_rank(), "plan": engine.module.partition_plan}


def test_a_rank_keeps_its_layers_and_their_names() -> None:
    names = {name: p.numel() for name, p in make("qwen2").named_parameters()}
    first, last = run_ranks(numels_of_two_stages, 2)
    assert {**first["numels"], **last["numels"]} == names
    shared = set(first["numels"]) & set(last["numels"])
    assert shared == {"model.embed_tokens.weight"}
    assert "model.norm.weight" in last["numels"]
    assert "2 stages by parameters" in first["plan"]


def save_in_two_stages(folder: str) -> dict[str, torch.Tensor]:
    """One step, and a checkpoint of it."""
    engine = ds_core.initialize(model=make("gpt2"), config=settings(1, pipeline={"stages": 2}))[0]
    engine.train_batch(batches())
    engine.save_checkpoint(folder)
    kept = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    engine.destroy()
    return kept


def test_a_checkpoint_of_stages_loads_into_the_whole_model(tmp_path: Path) -> None:
    first, last = run_ranks(save_in_two_stages, 2, str(tmp_path))
    engine = ds_core.initialize(model=make("gpt2"), config=settings(1))[0]
    engine.load_checkpoint(str(tmp_path))
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(parameter, {**first, **last}[name]), name
    engine.destroy()


def eval_alike() -> tuple[float, float]:
    """The loss of evaluation in stages, and that of the whole model."""
    whole = make("llama").eval()
    with torch.no_grad():
        expected = float(whole(**next(batches(masked=True))).loss)
    engine = ds_core.initialize(model=make("llama"), config=settings(2, pipeline={"stages": 2}))[0]
    loss, logits = engine.eval_batch(batches(masked=True), return_logits=True, num_micro_batches=1)
    assert (logits is not None) == engine.is_last_stage()
    assert engine.module.training
    return float(loss), expected


def test_evaluation_is_that_of_the_whole_model() -> None:
    for loss, expected in run_ranks(eval_alike, 2):
        assert loss == expected


class Odd(nn.Module):
    """No language model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_model_that_is_not_understood_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ModelError, match=r"Odd cannot be divided into stages .*no causal language model.*PipelineModule"
    ):
        examine(Odd())


def test_the_examined_model_is_as_it_was() -> None:
    model = make("gpt2")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    anatomy = examine(model)
    assert (anatomy.layers, anatomy.count) == ("transformer.h", 4)
    assert anatomy.before == ("transformer.wte", "transformer.wpe")
    assert anatomy.after == ("transformer.ln_f", "lm_head")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
