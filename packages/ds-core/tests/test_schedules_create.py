"""Schedules by name and by command-line flag."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import pytest
import torch

from ds_core.errors import ConfigError
from ds_core.schedules import (
    VALID_LR_SCHEDULES,
    OneCycle,
    WarmupLR,
    add_tuning_arguments,
    create,
    lr_from_config,
    scheduler_from_args,
)


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("LRRangeTest", {}),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 0.2}),
        ("WarmupLR", {}),
        ("WarmupDecayLR", {"total_num_steps": 2000}),
        ("WarmupCosineLR", {"total_num_steps": 2000}),
    ],
)
def test_every_valid_name_builds(name: str, params: dict[str, Any]) -> None:
    assert name in VALID_LR_SCHEDULES
    assert type(create(name.lower(), sgd(), params)).__name__ == name


def test_json_whole_floats_are_step_counts() -> None:
    made = create("WarmupLR", sgd(), {"warmup_num_steps": 1e1, "warmup_max_lr": [1], "warmup_type": "linear"})
    made.step(5)
    assert made.get_last_lr() == [0.5]


def test_any_torch_scheduler_name_is_accepted() -> None:
    optimizer = sgd()
    made = create("cosineannealinglr", optimizer, {"T_max": 2})
    assert type(made) is torch.optim.lr_scheduler.CosineAnnealingLR
    optimizer.step()
    made.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("WarmpuLR", {}, r"scheduler\.type 'WarmpuLR' is not known\. Did you mean 'WarmupLR'\? Installed: LRRangeTest"),
        (
            "WarmupLR",
            {"warmup_steps": 3},
            r"scheduler\.params\.warmup_steps is not a parameter of WarmupLR\. Did you mean",
        ),
        ("WarmupLR", {"warmup_num_steps": 2.5}, r"warmup_num_steps of WarmupLR must be a whole number, got 2\.5"),
        ("WarmupLR", {"warmup_num_steps": "10"}, "must be a whole number, got '10'"),
        ("WarmupLR", {"warmup_min_lr": "0"}, "warmup_min_lr of WarmupLR must be a number or a list of a number"),
        ("WarmupLR", {"warmup_type": "cubic"}, "must be one of 'log', 'linear', got 'cubic'"),
        ("WarmupDecayLR", {}, r"scheduler\.params of WarmupDecayLR must also give total_num_steps"),
        ("OneCycle", {}, "must also give cycle_min_lr, cycle_max_lr"),
        ("StepLR", {}, "of StepLR must also give step_size"),
        ("StepLR", {"step_size": True}, "step_size of StepLR must be a whole number, got True"),
        ("ExponentialLR", {"gamma": "x"}, "gamma of ExponentialLR must be a number"),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "mode": "square"}, "mode of CyclicLR must be one of 'triangular'"),
        ("LambdaLR", {}, "takes Python functions.*lr_scheduler="),
        ("SequentialLR", {}, "made of other schedulers"),
        ("ReduceLROnPlateau", {}, "validation metric"),
        ("LRScheduler", {}, "is not known"),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create(name, sgd(), params)


def parsed(*flags: str) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser()
    assert add_tuning_arguments(parser) is parser
    return scheduler_from_args(parser.parse_args(flags))


def test_flags_make_a_section_that_builds() -> None:
    section = parsed(
        "--lr_schedule", "OneCycle", "--cycle_min_lr", "0.1", "--cycle_max_lr", "0.2", "--no-cycle_momentum"
    )
    assert section == {
        "type": "OneCycle",
        "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 0.2, "cycle_momentum": False},
    }
    assert isinstance(create(section["type"], sgd(), section["params"]), OneCycle)
    warmup = parsed("--lr_schedule", "WarmupLR", "--warmup_num_steps", "7", "--warmup_type", "linear")
    assert warmup == {"type": "WarmupLR", "params": {"warmup_num_steps": 7, "warmup_type": "linear"}}
    assert isinstance(create(warmup["type"], sgd(), warmup["params"]), WarmupLR)
    assert parsed() is None


def test_every_flag_of_the_reference_exists() -> None:
    parser = add_tuning_arguments(argparse.ArgumentParser())
    flags = {action.dest for action in parser._actions}
    groups = {
        "lr_range_test": ("min_lr", "step_rate", "step_size", "staircase"),
        "cycle": ("first_step_size", "first_stair_count", "second_step_size", "second_stair_count", "min_lr", "max_lr"),
        "cycle_": ("min_mom", "max_mom", "momentum"),
        "decay": ("step_size", "lr_rate", "mom_rate"),
        "warmup": ("min_lr", "max_lr", "num_steps", "type"),
    }
    wanted = {f"{prefix.rstrip('_')}_{name}" for prefix, names in groups.items() for name in names}
    assert wanted | {"lr_schedule"} <= flags


def test_flags_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="--cycle_min_lr is a flag of OneCycle, not of WarmupLR"):
        parsed("--lr_schedule", "WarmupLR", "--cycle_min_lr", "0.1")
    with pytest.raises(ConfigError, match="--cycle_min_lr needs --lr_schedule"):
        parsed("--cycle_min_lr", "0.1")


def test_the_rate_of_a_section() -> None:
    assert lr_from_config({"type": "WarmupLR", "params": {"warmup_max_lr": 0.3}}) == 0.3
    assert lr_from_config({"type": "OneCycle", "params": {"cycle_max_lr": [0.1, 0.2]}}) == [0.1, 0.2]
    assert lr_from_config({"type": "LRRangeTest", "params": {"lr_range_test_min_lr": 0.2}}) == 0.2
    assert lr_from_config({"type": "WarmupCosineLR"}) is None
    with pytest.raises(ConfigError, match=r"scheduler\.type must be one of .*got 'WarmupRL'.* Did you mean 'WarmupLR'"):
        lr_from_config({"type": "WarmupRL"})


def test_importing_schedules_leaves_torch_alone() -> None:
    code = "import sys, ds_core.schedules, ds_core.monitors, ds_core.optim.registry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
