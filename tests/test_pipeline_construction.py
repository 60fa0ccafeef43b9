"""Pipelines of models, layers and stages that are constructed in pieces: what works, and what is refused."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

import ds_core
import ds_zero
from ds_core import comm
from ds_core.errors import ModelError
from ds_core.testing import run_ranks
from ds_pipeline import LayerSpec, PipelineError, PipelineModule

CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
    "pipeline": {"stages": 2},
}
WIDTH = 6


def train(sharded: bool, **pipeline: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Two steps of a model whose parameters were constructed whole, or in pieces on all ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    torch.manual_seed(0)
    if sharded:
        with ds_zero.Init():
            model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes))
    else:
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes))
    config = {**CONFIG, "pipeline": {"stages": 2, **pipeline}}
    engine = ds_core.initialize(model=model, config=config)[0]
    tokens = torch.arange(40).view(4, 2, 5) % 32
    data = iter([{"input_ids": row, "labels": row} for row in tokens])
    losses = [float(engine.train_batch(islice(data, 2))) for _ in range(2)]
    kept = {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}
    engine.destroy()
    return losses, kept


@pytest.mark.ranks
def test_a_model_constructed_in_pieces_is_divided_into_stages() -> None:
    for whole, pieces in zip(run_ranks(train, 2, False), run_ranks(train, 2, True), strict=True):
        assert whole[0] == pieces[0]
        assert whole[1].keys() == pieces[1].keys()
        assert all(torch.equal(value, pieces[1][name]) for name, value in whole[1].items())


def train_measured() -> list[float]:
    """Of a model in pieces, its layers divided by measured times."""
    return train(True, partition="profile", sample_length=5)[0]


@pytest.mark.ranks
def test_a_model_in_pieces_is_divided_by_measured_times() -> None:
    losses = run_ranks(train, 2, False)[0][0]
    for found in run_ranks(train_measured, 2):
        assert found == losses


def refused_inside() -> str:
    """What a PipelineModule says inside of Init; and the ranks can go on together."""
    try:
        with ds_zero.Init():
            PipelineModule([LayerSpec(nn.Linear, WIDTH, WIDTH) for _ in range(4)], num_stages=2)
    except PipelineError as error:
        comm.barrier()
        return str(error)
    return ""


def make_in_pieces(group: Any = None) -> nn.Module:
    """A layer that shards itself, over all ranks or those of a group."""
    with ds_zero.Init(data_parallel_group=group):
        return nn.Linear(WIDTH, WIDTH)


def refused_within() -> str:
    """What a layer says that would be sharded over all ranks, where only those of its stage make it."""
    try:
        PipelineModule([LayerSpec(make_in_pieces) for _ in range(4)], num_stages=2)
    except ModelError as error:
        comm.barrier()
        return str(error)
    return ""


@pytest.mark.ranks
def test_a_pipeline_inside_of_init_is_refused_with_what_to_do() -> None:
    for message in run_ranks(refused_inside, 2):
        assert "2 stages cannot be made inside ds_zero.Init" in message
        assert "make it outside" in message


@pytest.mark.ranks
def test_init_inside_of_a_stage_is_refused_where_it_needs_ranks_of_other_stages() -> None:
    for rank, message in enumerate(run_ranks(refused_within, 2)):
        assert f"over ranks [0, 1], but only [{rank}] make this layer" in message
        assert "take Init out" in message


def train_layers(how: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Two steps on two stages with two ranks each, of layers made whole or in pieces."""
    groups = [comm.new_group([0, 1]), comm.new_group([2, 3])] if how == "stage" else [None, None]
    group = groups[comm.get_rank() // 2]
    layers: list[Any]
    if how == "given":
        layers = []
        for index in range(4):
            torch.manual_seed(index)
            layers.append(make_in_pieces())
    else:
        layers = [LayerSpec(make_in_pieces, group) if how == "stage" else LayerSpec(nn.Linear, WIDTH, WIDTH)] * 4
    model = PipelineModule(layers, 2, loss_fn=nn.functional.mse_loss, seed_layers=True, base_seed=0)
    engine = ds_core.initialize(model=model, config=CONFIG)[0]
    x = torch.randn(4, 2, WIDTH, generator=torch.Generator().manual_seed(comm.get_rank() % 2))
    data = iter([(row, row.flip(-1)) for row in x])
    losses = [float(engine.train_batch(islice(data, 2))) for _ in range(2)]
    kept = {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}
    engine.destroy()
    return losses, kept


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["given", "stage"])
def test_layers_in_pieces_become_whole_in_their_stages(how: str) -> None:
    for whole, pieces in zip(run_ranks(train_layers, 4, "whole"), run_ranks(train_layers, 4, how), strict=True):
        assert whole[0] == pieces[0]
        assert whole[1].keys() == pieces[1].keys()
        assert all(torch.equal(value, pieces[1][name]) for name, value in whole[1].items())
