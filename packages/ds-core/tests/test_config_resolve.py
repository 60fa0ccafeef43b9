"""Resolving: open values, origins, combinations, and the frozen `Config`."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ds_core.config import Config, Facts, Origin, load, resolve
from ds_core.errors import ConfigError, MissingWheelError

ONE_RANK = Facts(1, 1)


def resolved(facts: Facts = ONE_RANK, **values: Any) -> Config:
    values.setdefault("train_batch_size", 8)
    return resolve(load(values, sections=()), facts)


def test_auto_and_null_take_the_default_and_say_so() -> None:
    config = resolved(gradient_clipping="auto", fp16={"hysteresis": None}, timers="auto")
    assert config.training.gradient_clipping == 1.0
    assert config.origin("gradient_clipping") == Origin("auto", "the default")
    assert config["fp16"].hysteresis == 2
    assert config.origin("fp16.hysteresis").kind == "auto"
    assert config.origin("timers.throughput.enabled").kind == "auto"
    assert not config.is_set("gradient_clipping")
    assert config.origin("steps_per_print") == Origin("default")


def test_precision_follows_the_model_when_left_open() -> None:
    facts = Facts(1, 1, model_dtype="bfloat16")
    config = resolved(facts, bf16={"enabled": "auto"}, fp16={"enabled": "auto"})
    assert (config["bf16"].enabled, config["fp16"].enabled) == (True, False)
    assert config.origin("bf16.enabled") == Origin("auto", "the model is bfloat16")
    assert resolved(facts)["bf16"].enabled is False
    assert resolved(Facts(1, 1, model_dtype="torch.float16"), fp16="auto")["fp16"].enabled is True


def test_open_optimizer_arguments_are_left_to_the_optimizer() -> None:
    config = resolved(optimizer={"type": "AdamW", "params": {"lr": 1e-3, "betas": "auto", "eps": None}})
    assert config["optimizer"].params == {"lr": 1e-3}
    assert config.origin("optimizer.params.lr").kind == "file"
    assert {row.key: row.origin.kind for row in config.rows()}["optimizer.params.betas"] == "auto"


def test_arguments_and_environment_stand_above_the_file() -> None:
    raw = load({"train_batch_size": 8, "optimizer": {"type": "Adam", "params": {"lr": 1}}}, sections=())
    raw = raw.override("optimizer.params.lr", 2, Origin("argument", "lr"))
    raw = raw.override("accelerator", "cpu", Origin("environment", "DS_ACCELERATOR"))
    config = resolve(raw, Facts(1, 1))
    assert raw.accelerator == "cpu"
    assert config["optimizer"].params["lr"] == 2
    assert str(config.origin("optimizer.params.lr")) == "argument: lr"
    assert str(config.origin("accelerator")) == "environment: DS_ACCELERATOR"
    assert config.origin("optimizer.type") == Origin("file", "the config dict")
    with pytest.raises(ConfigError, match="seed must be an integer"):
        raw.override("seed", "x", Origin("argument", "seed"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"fp16": {"enabled": True}, "bf16": {"enabled": True}},
            "fp16.enabled (from the config dict) and bf16.enabled",
        ),
        ({"optimizer": {"type": "Adam", "params": {"max_grad_norm": 2}}}, "set gradient_clipping to 2"),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.params is set and optimizer.type is not"),
        ({"scheduler": {"params": {"x": 1}}}, "scheduler.params is set and scheduler.type is not"),
        ({"bf16": {"bf16_optimizer_states": True}}, "needs bf16.bf16_master_weights_and_grads true"),
        ({"fp16": {"initial_scale_power": 2, "min_loss_scale": 8}}, "fp16.min_loss_scale 8 is above"),
        ({"prescale_gradients": True, "gradient_predivide_factor": 2.0}, "gradient_predivide_factor 2 does nothing"),
        ({"prescale_gradients": True, "gradient_allreduce_op": "sum"}, "keeps them undivided"),
        ({"torch_autocast": {"enabled": True, "dtype": "fp32"}}, "torch_autocast.dtype must be bfloat16 or float16"),
    ],
)
def test_combinations_that_cannot_be_used(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(**values)
    assert message in str(caught.value)


def test_all_problems_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(
            Facts(3, 3),
            fp16={"enabled": True},
            bf16={"enabled": True},
            optimizer={"type": "Adam", "params": {"max_grad_norm": 1}},
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("train_batch_size 8 (from the config dict) is not a multiple of 3")
    assert lines[-1] == "(3 problems in the config dict)"


@pytest.mark.parametrize("name", ["OneBitAdam", "onebitlamb", "ZeroOneAdam", "MuSGD"])
def test_optimizers_without_a_wheel_are_named_with_theirs(name: str) -> None:
    with pytest.raises(MissingWheelError, match=r"optimizer.type \w+ is planned in ds-\w+, which is not released yet"):
        resolved(optimizer={"type": name})


def test_vocabulary_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        resolved(vocabulary_size=50257)
        assert "vocabulary_size 50257 is not a multiple of 8" in caplog.text
        assert "50264" in caplog.text
        caplog.clear()
        resolved(vocabulary_size=50264)
        assert not caplog.records


def test_sections_of_wheels_that_are_missing() -> None:
    config = resolved(zero_optimization={"stage": 0}, wandb={"enabled": False, "project": "p"})
    with pytest.raises(MissingWheelError, match="zero_optimization asks for ds-zero, which is not installed: pip"):
        _ = config["zero_optimization"]
    with pytest.raises(ConfigError, match="Did you mean 'optimizer'"):
        _ = config["optimiser"]
    with pytest.raises(ConfigError, match=r"read config\.training\.seed"):
        _ = config["seed"]
    assert "zero_optimization" not in config
    assert config.section_or_none("zero_optimization") is None
    assert config.get("zero_optimization.stage", 0) == 0
    row = next(row for row in config.rows() if row.key == "wandb")
    assert "asks for nothing" in row.origin.detail


def test_get_reads_any_dotted_key() -> None:
    config = resolved(optimizer={"type": "Adam", "params": {"lr": 0.5}})
    assert config.get("gradient_clipping") == 1.0
    assert config.get("optimizer.params.lr") == 0.5
    assert config.get("optimizer.params.eps", 7) == 7
    assert config.get("timers.throughput.synchronized") is True
    assert config.get("timers.model_fields") is None
    assert config.get("nothing.here") is None


def test_is_set_knows_what_was_written() -> None:
    config = resolved(optimizer={"type": "Adam"}, fp16={})
    assert config.is_set("optimizer")
    assert config.is_set("optimizer.type")
    assert config.is_set("fp16")
    assert not config.is_set("fp16.enabled")
    assert not config.is_set("bf16")
    assert config.is_set("train_batch_size")
    assert not config.is_set("gradient_accumulation_steps")
    with pytest.raises(ConfigError, match=r"Did you mean 'optimizer\.type'"):
        config.origin("optimizer.typ")


def test_a_config_is_frozen() -> None:
    config = resolved()
    with pytest.raises(AttributeError):
        config.facts = Facts(2)  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.training.seed = 3
    with pytest.raises(ValueError, match="frozen"):
        config["fp16"].enabled = True


def test_to_dict_reads_back_to_an_equal_config() -> None:
    config = resolved(
        Facts(2, 2),
        optimizer={"type": "AdamW", "params": {"betas": [0.9, 0.99]}},
        bf16={"enabled": True},
        communication_data_type="fp32",
        checkpoint={"tag_validation": "fail", "keep_last": 3},
    )
    again = resolve(load(config.to_dict(), sections=()), Facts(2, 2))
    assert config.diff(again) == []
    assert again.to_dict() == config.to_dict()
    assert config.to_dict()["communication_data_type"] == "float32"


def test_diff_lists_what_differs() -> None:
    one = resolved(seed=1, optimizer={"type": "Adam", "params": {"lr": 0.1}})
    two = resolved(seed=2, optimizer={"type": "Adam"})
    rows = {row.key: (row.left and row.left.value, row.right and row.right.value) for row in one.diff(two)}
    assert rows["seed"] == (1, 2)
    assert rows["optimizer.params.lr"] == (0.1, None)
    assert set(rows) == {"seed", "optimizer.params.lr", "optimizer.params"}


def test_every_value_has_a_row_with_an_origin() -> None:
    config = resolved()
    rows = {row.key: row.origin for row in config.rows()}
    assert rows["train_batch_size"] == Origin("file", "the config dict")
    assert all(isinstance(origin, Origin) for origin in rows.values())
    assert len(rows) == len(list(config.rows()))


def test_infinity_stops_progress_lines() -> None:
    assert resolved(steps_per_print=float("inf")).training.steps_per_print is None
    assert resolved(steps_per_print=10).training.steps_per_print == 10


def test_a_raw_config_shows_sections_before_it_is_resolved() -> None:
    raw = load({"comms_logger": {"enabled": True, "verbose": "auto"}}, sections=())
    assert (raw["comms_logger"].enabled, raw["comms_logger"].verbose) == (True, False)
    assert raw["fp16"].enabled is False
    assert raw.accelerator is None
    with pytest.raises(ConfigError, match="ds-zero"):
        _ = raw["zero_optimization"]


def test_facts_need_ranks() -> None:
    with pytest.raises(ConfigError, match="world_size must be at least 1, got 0"):
        Facts(0)
