from __future__ import annotations

import pytest
import torch

import ds_core
from ds_core.errors import ConfigError


def train_one_step(section: dict[str, object]) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight before and after one step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    engine, _, _, _ = ds_core.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": 2,
            "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
            "{{key}}": section,
        },
    )
    before = model.weight.detach().clone()
    engine.backward(engine(torch.ones(2, 4)).square().mean())
    engine.step()
    after = model.weight.detach().clone()
    engine.destroy()
    return before, after


def test_a_step_below_the_limit_is_taken() -> None:
    before, after = train_one_step({"enabled": True, "max_norm": 1e6})
    assert not torch.equal(before, after)


def test_a_step_above_the_limit_is_left_out() -> None:
    before, after = train_one_step({"enabled": True, "max_norm": 1e-6})
    assert torch.equal(before, after)


def test_it_is_off_unless_asked_for() -> None:
    before, after = train_one_step({"max_norm": 1e-6})
    assert not torch.equal(before, after)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_nrom"):
        train_one_step({"enabled": True, "max_nrom": 1.0})
