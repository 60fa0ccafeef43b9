"""Every schedule against its closed form, torch's equivalent, and values observed on DeepSpeed 0.19.8 from outside."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ds_core.errors import CheckpointError, ConfigError, ModelError
from ds_core.schedules import LRRangeTest, OneCycle, Schedule, WarmupCosineLR, WarmupDecayLR, WarmupLR


def adam(*lrs: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs or (0.1,)]
    return torch.optim.Adam(groups)


def curve(cls: type[Schedule], steps: int, *lrs: float, **params: Any) -> list[float]:
    """Rate of the last group at construction and after each of `steps` steps."""
    optimizer = adam(*lrs)
    schedule = cls(optimizer, **params)
    rates = [optimizer.param_groups[-1]["lr"]]
    for _ in range(steps):
        schedule.step()
        rates.append(optimizer.param_groups[-1]["lr"])
        assert schedule.get_last_lr() == schedule.get_lr() == [g["lr"] for g in optimizer.param_groups]
    return rates


def torch_curve(scheduler: type, optimizer: torch.optim.Optimizer, steps: int, **params: Any) -> list[float]:
    made = scheduler(optimizer, **params)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        made.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


OBSERVED: list[tuple[type[Schedule], dict[str, Any], list[float]]] = [
    (
        WarmupLR,
        {"warmup_num_steps": 4, "warmup_type": "linear"},
        [0, 0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1],
    ),
    (WarmupLR, {"warmup_num_steps": 4}, [0, 0, 0.05, 0.07924812503605783, 0.1, 0.1]),
    (
        WarmupDecayLR,
        {
            "total_num_steps": 10,
            "warmup_min_lr": 0.01,
            "warmup_max_lr": 0.1,
            "warmup_num_steps": 4,
            "warmup_type": "linear",
        },
        [0.01, 0.01, 0.0325, 0.055, 0.0775, 0.1, 0.085, 0.07, 0.055, 0.04, 0.025, 0.01, 0.01],
    ),
    (
        LRRangeTest,
        {"lr_range_test_min_lr": 0.01, "lr_range_test_step_size": 3, "lr_range_test_step_rate": 2.0},
        [0.01, 0.016666666666666666, 0.02333333333333333, 0.03, 0.03666666666666667],
    ),
    (
        OneCycle,
        {
            "cycle_min_lr": 0.01,
            "cycle_max_lr": 0.05,
            "cycle_first_step_size": 8,
            "cycle_first_stair_count": 4,
            "cycle_second_step_size": 6,
            "cycle_second_stair_count": 3,
        },
        [
            *(0.01, 0.01, 0.02, 0.02, 0.03, 0.03, 0.04, 0.04, 0.05),
            *(0.036666666666666667, 0.036666666666666667, 0.02333333333333333, 0.02333333333333333, 0.01, 0.01, 0.01),
        ],
    ),
]


@pytest.mark.parametrize(
    ("cls", "params", "expected"), OBSERVED, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(OBSERVED)]
)
def test_the_curve_is_deepspeeds(cls: type[Schedule], params: dict[str, Any], expected: list[float]) -> None:
    assert curve(cls, len(expected) - 1, 0.1, **params) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_cosine_is_deepspeeds_after_the_first_update() -> None:
    got = curve(
        WarmupCosineLR, 12, 0.1, total_num_steps=10, warmup_min_ratio=0.1, warmup_num_steps=4, warmup_type="linear"
    )
    observed = [0.01, 0.0325, 0.055, 0.0775, 0.09330194006220302, 0.0750025, 0.050005, 0.025007500000000012]
    assert got[1:] == pytest.approx([*observed, 0.006708059937796987, 1e-5, 1e-5, 1e-5], rel=1e-12)
    assert got[0] == pytest.approx(0.01)


def test_linear_warmup_equals_torchs_linear_lr() -> None:
    ours = curve(WarmupLR, 12, 0.1, warmup_min_lr=0.02, warmup_num_steps=8, warmup_type="linear")[1:]
    theirs = torch_curve(torch.optim.lr_scheduler.LinearLR, adam(0.1), 11, start_factor=0.2, total_iters=8)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_decay_equals_torchs_linear_lr_down() -> None:
    ours = curve(WarmupDecayLR, 30, 0.1, total_num_steps=25, warmup_max_lr=0.1, warmup_num_steps=5)[6:]
    theirs = torch_curve(torch.optim.lr_scheduler.LinearLR, adam(0.1), 24, start_factor=1, end_factor=0, total_iters=20)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_cosine_equals_torchs_cosine_annealing() -> None:
    ours = curve(WarmupCosineLR, 25, 0.1, total_num_steps=25, warmup_num_steps=5, cos_min_ratio=0.01)[6:]
    theirs = torch_curve(torch.optim.lr_scheduler.CosineAnnealingLR, adam(0.1), 20, T_max=20, eta_min=0.001)
    assert ours == pytest.approx(theirs[1:], rel=1e-9)


def test_one_cycle_equals_torchs_cyclic_lr_within_the_cycle() -> None:
    ours = curve(OneCycle, 15, cycle_min_lr=0.01, cycle_max_lr=0.05, cycle_first_step_size=10, cycle_second_step_size=5)
    theirs = torch_curve(
        torch.optim.lr_scheduler.CyclicLR,
        adam(0.01),
        15,
        base_lr=0.01,
        max_lr=0.05,
        step_size_up=10,
        step_size_down=5,
    )
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("staircase", [False, True])
def test_range_test_closed_form(staircase: bool) -> None:
    got = curve(
        LRRangeTest,
        20,
        lr_range_test_min_lr=1e-4,
        lr_range_test_step_size=6,
        lr_range_test_step_rate=5.0,
        lr_range_test_staircase=staircase,
    )
    assert got == pytest.approx([1e-4 * (1 + 5 * (t // 6 if staircase else t / 6)) for t in range(21)], rel=1e-12)


def test_log_warmup_closed_form() -> None:
    got = curve(WarmupLR, 20, warmup_min_lr=0.001, warmup_max_lr=0.1, warmup_num_steps=10)[1:]
    share = [math.log(min(t, 9) + 1) / math.log(10) for t in range(20)]
    assert got == pytest.approx([0.001 + 0.099 * s for s in share], rel=1e-9)


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_a_warmup_of_one_step_starts_low_and_then_is_done(kind: str) -> None:
    assert curve(WarmupLR, 3, 0.1, warmup_num_steps=1, warmup_type=kind) == [0.0, 0.0, 0.1, 0.1]


def test_the_rate_after_the_warmup_is_exactly_the_groups_own() -> None:
    assert curve(WarmupLR, 5, 0.3, warmup_min_lr=0.1, warmup_num_steps=3)[-1] == 0.3


PER_GROUP: list[tuple[type[Schedule], dict[str, Any], list[float]]] = [
    (WarmupLR, {"warmup_num_steps": 2, "warmup_type": "linear"}, [0.05, 0.1]),
    (
        WarmupLR,
        {"warmup_min_lr": [0.1, 0.2], "warmup_max_lr": [0.3, 0.6], "warmup_num_steps": 2, "warmup_type": "linear"},
        [0.2, 0.4],
    ),
    (
        WarmupDecayLR,
        {
            "total_num_steps": 4,
            "warmup_min_lr": [0.1, 0.2],
            "warmup_max_lr": [0.3, 0.6],
            "warmup_num_steps": 2,
            "warmup_type": "linear",
        },
        [0.2, 0.4],
    ),
    (WarmupCosineLR, {"total_num_steps": 4, "warmup_num_steps": 2, "warmup_type": "linear"}, [0.05, 0.1]),
    (LRRangeTest, {"lr_range_test_min_lr": [0.1, 0.2], "lr_range_test_step_size": 2}, [0.2, 0.4]),
    (OneCycle, {"cycle_min_lr": [0.1, 0.2], "cycle_max_lr": [0.3, 0.6], "cycle_first_step_size": 2}, [0.3, 0.6]),
]


@pytest.mark.parametrize(
    ("cls", "params", "expected"), PER_GROUP, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(PER_GROUP)]
)
def test_each_group_has_its_own_rate(cls: type[Schedule], params: dict[str, Any], expected: list[float]) -> None:
    optimizer = adam(0.1, 0.2)
    schedule = cls(optimizer, **params)
    schedule.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)


def test_a_list_that_does_not_fit_the_groups_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_max_lr of WarmupLR has 3 values .* has 2 parameter groups"):
        WarmupLR(adam(0.1, 0.2), warmup_max_lr=[0.1, 0.2, 0.3])


def test_momentum_is_cycled_in_betas_and_in_momentum_and_the_second_beta_is_left_alone() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    for optimizer in (torch.optim.Adam([weight], betas=(0.5, 0.7)), torch.optim.SGD([weight], momentum=0.5)):
        schedule = OneCycle(
            optimizer,
            cycle_min_lr=0.01,
            cycle_max_lr=0.05,
            cycle_first_step_size=4,
            cycle_min_mom=0.8,
            cycle_max_mom=0.9,
            decay_step_size=2,
            decay_mom_rate=0.05,
        )
        group, seen = optimizer.param_groups[0], []
        for _ in range(12):
            assert schedule.get_mom() == pytest.approx([group["betas"][0] if "betas" in group else group["momentum"]])
            assert "betas" not in group or group["betas"][1] == 0.7
            seen.append(schedule.get_mom())
            schedule.step()
        flat = [value for moms in seen if moms is not None for value in moms]
        assert flat[:9] == pytest.approx([0.9, 0.875, 0.85, 0.825, 0.8, 0.825, 0.85, 0.875, 0.9])
        assert flat[9:] == pytest.approx([0.9 * 1.025, 0.9 * 1.05, 0.9 * 1.075])


def test_momentum_is_left_alone_when_not_cycled_and_never_reaches_one() -> None:
    optimizer = adam()
    still = OneCycle(optimizer, cycle_min_lr=0.01, cycle_max_lr=0.05, cycle_momentum=False)
    assert still.get_mom() is None
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    growing = OneCycle(
        optimizer, 0.01, 0.05, cycle_first_step_size=1, decay_step_size=1, decay_mom_rate=1.0, decay_lr_rate=1.0
    )
    growing.step(50)
    assert growing.get_mom() == [0.999]
    assert growing.get_lr() == pytest.approx([0.01 / 50])


def test_options_without_effect_are_said(caplog: pytest.LogCaptureFixture) -> None:
    OneCycle(adam(), 0.01, 0.05, decay_lr_rate=1.0)
    assert "decay_step_size is 0" in caplog.text
    caplog.clear()
    rms = torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))])
    assert OneCycle(rms, 0.01, 0.05).get_mom() is None
    assert "neither betas nor momentum" in caplog.text


@pytest.mark.parametrize(
    ("cls", "params", "message"),
    [
        (WarmupLR, {"warmup_num_steps": 0}, "warmup_num_steps must be a positive whole number, got 0"),
        (WarmupLR, {"warmup_num_steps": -3}, "got -3"),
        (WarmupLR, {"warmup_type": "cubic"}, "'log' or 'linear', got 'cubic'"),
        (WarmupDecayLR, {"total_num_steps": 10}, r"warmup_num_steps of WarmupDecayLR is 1000, more than .* 10"),
        (WarmupCosineLR, {"total_num_steps": 10, "warmup_num_steps": 11}, "the decay would never begin"),
        (LRRangeTest, {"lr_range_test_step_size": 0}, "lr_range_test_step_size must be at least 1, got 0"),
        (OneCycle, {"cycle_min_lr": 0.5, "cycle_max_lr": 0.1}, "cycle_min_lr of OneCycle must not exceed cycle_max_lr"),
        (OneCycle, {"cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_second_step_size": 0}, "at least 1, got 0"),
        (OneCycle, {"cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_first_stair_count": -1}, "at least 0, got -1"),
        (OneCycle, {"cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_min_mom": 0.95}, "cycle_min_mom"),
    ],
)
def test_values_that_make_no_sense_are_refused(cls: type[Schedule], params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(adam(), **params)


ALL: list[tuple[type[Schedule], dict[str, Any]]] = [
    (LRRangeTest, {"lr_range_test_step_size": 2}),
    (
        OneCycle,
        {
            "cycle_min_lr": 0.01,
            "cycle_max_lr": 0.1,
            "cycle_first_step_size": 5,
            "decay_step_size": 1,
            "decay_lr_rate": 0.5,
        },
    ),
    (WarmupLR, {"warmup_num_steps": 5}),
    (WarmupDecayLR, {"total_num_steps": 15, "warmup_num_steps": 5}),
    (WarmupCosineLR, {"total_num_steps": 15, "warmup_num_steps": 5}),
]


@pytest.mark.parametrize(("cls", "params"), ALL, ids=[row[0].__name__ for row in ALL])
def test_a_restored_schedule_continues_as_the_undisturbed_one(cls: type[Schedule], params: dict[str, Any]) -> None:
    undisturbed = curve(cls, 20, **params)
    first = cls(adam(), **params)
    for _ in range(7):
        first.step()
    optimizer = adam()
    second = cls(optimizer, **params)
    second.load_state_dict(first.state_dict())
    assert optimizer.param_groups[0]["lr"] == undisturbed[7]
    rest = []
    for _ in range(13):
        second.step()
        rest.append(optimizer.param_groups[0]["lr"])
    assert rest == undisturbed[8:]
    jumped = adam()
    cls(jumped, **params, last_batch_iteration=6).step()
    assert jumped.param_groups[0]["lr"] == undisturbed[8]


def test_a_state_without_a_position_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"last_batch_iteration, got None among the keys last_epoch"):
        WarmupLR(adam()).load_state_dict({"last_epoch": 3})


def test_step_can_be_told_where_it_is() -> None:
    schedule = WarmupLR(adam(), warmup_num_steps=10, warmup_type="linear")
    schedule.step(5)
    assert schedule.get_last_lr() == pytest.approx([0.05])
    assert schedule.state_dict() == {"last_batch_iteration": 5}


class Groups:
    """Not a torch optimizer."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": 0.1}]


def test_anything_with_groups_will_do() -> None:
    groups = Groups()
    OneCycle(groups, 0.01, 0.05, cycle_first_step_size=2).step()
    assert groups.param_groups == [{"lr": pytest.approx(0.03)}]
    with pytest.raises(ModelError, match="needs an object with param_groups, got dict"):
        WarmupLR({})  # type: ignore[arg-type]


def test_a_tensor_rate_is_filled_in_place() -> None:
    rate, beta = torch.tensor(0.5), torch.tensor(0.5)
    groups = Groups()
    groups.param_groups = [{"lr": rate, "betas": (beta, torch.tensor(0.7))}]
    OneCycle(groups, 0.01, 0.05, cycle_first_step_size=2).step()
    assert groups.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.03)
    assert float(beta) == pytest.approx(0.85)
