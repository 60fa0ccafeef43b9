from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

import ds_core
import ds_zero
from ds_core.testing import run_ranks

CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
    "pipeline": {"stages": 2},
}


def train(sharded: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Two steps of a model whose parameters were constructed whole, or in pieces on all ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    torch.manual_seed(0)
    if sharded:
        with ds_zero.Init():
            model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes))
    else:
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes))
    engine = ds_core.initialize(model=model, config=CONFIG)[0]
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
