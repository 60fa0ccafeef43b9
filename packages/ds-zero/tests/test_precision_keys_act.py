"""Every key of the sections on precision does something, as in test_config_keys_act.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from observing import build, changes_weights, train, wire

from ds_core.config import Facts, load, resolve


def bf16_enabled(tmp_path: Path) -> None:
    assert build(bf16={"enabled": True}).module.a.weight.dtype == torch.bfloat16
    assert build().module.a.weight.dtype == torch.float32


def immediate_grad_update(tmp_path: Path) -> None:
    def dtype(flag: bool) -> torch.dtype:
        engine = build(bf16={"enabled": True, "immediate_grad_update": flag})
        engine.backward(engine(torch.ones(3, 6).bfloat16()).float().mean())
        return engine.module.a.weight.grad.dtype

    assert (dtype(False), dtype(True)) == (torch.bfloat16, torch.float32)


def check_grad_overflow(tmp_path: Path) -> None:
    def applied(flag: bool) -> bool:
        engine = build(bf16={"enabled": True, "check_grad_overflow": flag})
        train(engine, 1, factor=math.inf)
        return engine.was_step_applied()

    assert (applied(True), applied(False)) == (False, True)


def masters(section: str, flag: str) -> Callable[[Path], None]:
    def observe(tmp_path: Path) -> None:
        def dtypes(value: bool) -> set[torch.dtype]:
            engine = build(**{section: {"enabled": True, flag: value}})
            return {p.dtype for group in engine.optimizer.param_groups for p in group["params"]}

        assert dtypes(False) == {torch.float32}
        assert torch.float32 not in dtypes(True)

    return observe


def bf16_optimizer_states(tmp_path: Path) -> None:
    def dtypes(value: bool) -> set[torch.dtype]:
        bf16 = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": value}
        engine = build(bf16=bf16, optimizer={"type": "AdamW", "params": {"lr": 1e-3}})
        train(engine, 1)
        return {s["exp_avg"].dtype for s in engine.optimizer.state.values()}

    assert (dtypes(False), dtypes(True)) == ({torch.float32}, {torch.bfloat16})


def stochastic_rounding(tmp_path: Path) -> None:
    base = {
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    }
    changes_weights("bf16.stochastic_rounding", True, base)


def fp16_scale_keys(tmp_path: Path) -> None:
    def scale(**fp16) -> float:
        return build(fp16={"enabled": True, **fp16}).optimizer.loss_scale

    assert (scale(), scale(initial_scale_power=3), scale(loss_scale=128.0)) == (65536.0, 8.0, 128.0)

    def scales(factors: list[float], **fp16) -> list[float]:
        engine = build(
            fp16={"enabled": True, "initial_scale_power": 2, **fp16}, optimizer={"type": "SGD", "params": {"lr": 0.0}}
        )
        seen = []
        for factor in factors:
            train(engine, 1, factor)
            seen.append(engine.optimizer.loss_scale)
        return seen

    assert scales([1, 1], loss_scale_window=1) == [8.0, 16.0]
    assert scales([math.inf], hysteresis=1) == [2.0]
    assert scales([math.inf], hysteresis=2) == [4.0]
    assert scales([math.inf, 1, math.inf], hysteresis=2) == [4.0, 4.0, 2.0]
    assert scales([math.inf, 1, math.inf], hysteresis=2, consecutive_hysteresis=True) == [4.0, 4.0, 4.0]
    assert scales([math.inf], hysteresis=1, min_loss_scale=4.0, initial_scale_power=3) == [4.0]


def auto_cast(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        build(fp16={"enabled": True})(torch.ones(3, 6))
    assert build(fp16={"enabled": True, "auto_cast": True})(torch.ones(3, 6)).dtype == torch.float16


def data_types(tmp_path: Path) -> None:
    assert build(data_types={"param_dtype": "bf16"}).module.a.weight.dtype == torch.bfloat16
    assert build(data_types={"buffer_dtype": "bf16"}).module.shift.dtype == torch.bfloat16
    engine = build(bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"})
    engine.backward(engine(torch.ones(3, 6).bfloat16()).float().mean())
    assert engine.module.a.weight.grad.dtype == torch.float32


def autocast(tmp_path: Path) -> None:
    def dtype(**section) -> torch.dtype:
        return build(torch_autocast=section)(torch.ones(3, 6)).dtype

    assert dtype(enabled=False) == torch.float32
    assert dtype(enabled=True) == torch.bfloat16
    assert dtype(enabled=True, dtype="float16") == torch.float16


def lower_precision_safe_modules(tmp_path: Path) -> None:
    low = wire(torch_autocast={"enabled": True})
    none = wire(torch_autocast={"enabled": True, "lower_precision_safe_modules": []})
    assert low["all_reduce", "gradients"][1] * 2 == none["all_reduce", "gradients"][1]


SECTIONS = ("bf16.", "fp16.", "data_types.", "torch_autocast.")

OBSERVED = {
    "bf16.enabled": bf16_enabled,
    "bf16.immediate_grad_update": immediate_grad_update,
    "bf16.check_grad_overflow": check_grad_overflow,
    "bf16.bf16_master_weights_and_grads": masters("bf16", "bf16_master_weights_and_grads"),
    "bf16.bf16_optimizer_states": bf16_optimizer_states,
    "bf16.stochastic_rounding": stochastic_rounding,
    "data_types.grad_accum_dtype": data_types,
    "data_types.param_dtype": data_types,
    "data_types.buffer_dtype": data_types,
    "fp16.enabled": fp16_scale_keys,
    "fp16.auto_cast": auto_cast,
    "fp16.loss_scale": fp16_scale_keys,
    "fp16.initial_scale_power": fp16_scale_keys,
    "fp16.loss_scale_window": fp16_scale_keys,
    "fp16.hysteresis": fp16_scale_keys,
    "fp16.consecutive_hysteresis": fp16_scale_keys,
    "fp16.min_loss_scale": fp16_scale_keys,
    "fp16.fp16_master_weights_and_grads": masters("fp16", "fp16_master_weights_and_grads"),
    "torch_autocast.enabled": autocast,
    "torch_autocast.dtype": autocast,
    "torch_autocast.lower_precision_safe_modules": lower_precision_safe_modules,
}


def test_every_served_key_has_an_observation():
    served = {row.key for row in resolve(load({"train_batch_size": 4}), Facts(1, 1)).rows()}
    assert {key for key in served if key.startswith(SECTIONS)} == set(OBSERVED)


_DISTINCT = {id(observe): (key, observe) for key, observe in reversed(OBSERVED.items())}


@pytest.mark.parametrize("key", [key for key, _ in reversed(_DISTINCT.values())])
def test_setting_the_key_changes_what_is_observed(key, tmp_path):
    OBSERVED[key](tmp_path)
