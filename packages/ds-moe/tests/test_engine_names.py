"""The engine of a model with experts names its layers, gates and experts."""

from __future__ import annotations

from typing import Any

import torch

import ds_core
from ds_moe.layer import MoE


def make(model: torch.nn.Module) -> Any:
    config = {"train_batch_size": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    return ds_core.initialize(model=model, config=config)[0]


def test_layers_gates_and_experts_of_the_model():
    layers = [MoE(4, torch.nn.Linear(4, 4), num_experts=count) for count in (2, 3)]
    engine = make(torch.nn.Sequential(layers[0], torch.nn.Linear(4, 4), layers[1]))
    assert engine.has_moe_layers is True
    assert engine.moe_layers == layers
    assert engine.gate_modules == [layer.gate for layer in layers]
    assert engine.num_experts == [2, 3]


def test_a_model_without_experts_says_so():
    engine = make(torch.nn.Linear(4, 4))
    assert engine.has_moe_layers is False
    assert (engine.moe_layers, engine.gate_modules, engine.num_experts) == ([], [], [])
