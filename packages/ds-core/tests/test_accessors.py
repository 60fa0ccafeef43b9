"""What an engine answers about its config and its place, under the names users of DeepSpeed call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ds_core
from ds_core.accessors import ACCESSORS, OFF
from ds_core.errors import EngineError, MissingWheelError

CONFIG = {
    "train_batch_size": 4,
    "gradient_clipping": 0.5,
    "fp16": {"enabled": True, "initial_scale_power": 8},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}},
}


@pytest.fixture
def engine():
    made, *_ = ds_core.initialize(model=nn.Linear(3, 2), config=CONFIG)
    yield made
    made.destroy()


@pytest.mark.parametrize("name", sorted({**ACCESSORS, **OFF}))
def test_every_accessor_answers(engine, name):
    getattr(engine, name)()


def test_accessors_answer_with_the_resolved_config(engine):
    assert engine.gradient_clipping() == 0.5
    assert (engine.fp16_enabled(), engine.bfloat16_enabled()) == (True, False)
    assert (engine.dynamic_loss_scale(), engine.initial_dynamic_scale()) == (True, 256.0)
    assert engine.dynamic_loss_scale_args()["delayed_shift"] == 2
    assert engine.optimizer_name() == "AdamW"
    assert engine.scheduler_params()["warmup_num_steps"] == 3
    assert (engine.checkpoint_tag_validation_enabled(), engine.checkpoint_tag_validation_fail()) == (True, False)
    assert (engine.postscale_gradients(), engine.communication_data_type) == (True, None)


def test_what_no_wheel_serves_is_off(engine):
    assert engine.pld_enabled() is False
    assert engine.curriculum_enabled_legacy() is False
    assert engine.autotp_size() == 0
    assert engine.mics_shard_size() == -1
    assert engine.zero_contiguous_gradients() is True
    assert engine.progressive_layer_drop is None


def test_place_types_and_the_optimizer_inside(engine):
    assert (engine.mp_world_size, engine.get_model_parallel_rank(), engine.get_tensor_parallel_rank()) == (1, 0, 0)
    assert engine.get_type() == ["WarmupLR"]
    assert engine.get_data_types() == (torch.float16, torch.float16)
    assert isinstance(engine.basic_optimizer, torch.optim.Optimizer)
    assert engine._config is engine.config
    assert engine.is_map_style_dataset([1]) and not engine.is_map_style_dataset(iter([1]))


def test_clipping_by_hand_and_compiler_passes_are_refused(engine):
    with pytest.raises(EngineError, match="gradient_clipping"):
        engine.clip_fp32_gradients()
    with pytest.raises(MissingWheelError, match="ds-compile"):
        engine.compile(schedule=[1])
    assert not engine.is_compiled


def test_compile_keeps_the_numbers():
    torch.manual_seed(0)
    config = {"train_batch_size": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine, *_ = ds_core.initialize(model=nn.Linear(3, 2), config=config)
    x = torch.randn(2, 3)
    plain = engine(x)
    engine.compile(backend="eager")
    assert engine.is_compiled
    torch.testing.assert_close(engine(x), plain)
    engine.destroy()


def test_sections_are_read_as_mappings_too(engine):
    assert engine.config.get("fp16", {}).get("enabled") is True
    assert engine.config["fp16"]["initial_scale_power"] == 8
    assert "enabled" in engine.config["fp16"] and "nonsense" not in engine.config["fp16"]
    assert engine.config["fp16"].get("nonsense", 7) == 7
    with pytest.raises(KeyError):
        engine.config["fp16"]["nonsense"]
