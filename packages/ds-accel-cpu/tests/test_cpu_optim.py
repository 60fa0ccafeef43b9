from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_accel_cpu.optim import CPUAdam, make_adam, make_adamw
from ds_core.errors import ConfigError
from ds_core.optim import create
from ds_core.optim.flat import FlatUpdate, supports_flat

WITH_FMA = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def pair(*shapes: tuple[int, ...]) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return ours, [torch.nn.Parameter(p.detach().clone()) for p in ours]


def ten_steps(first: torch.optim.Optimizer, second: torch.optim.Optimizer, pairs: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        for one, other in zip(*pairs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        first.step()
        second.step()


@pytest.mark.skipif(not WITH_FMA, reason="torch was told to run without fma")
@pytest.mark.parametrize("adamw", [True, False])
def test_ten_steps_are_bit_equal_to_torchs_fused_optimizer(adamw: bool) -> None:
    pairs = pair((64,), (128, 32), (4, 16, 80))  # whole vectors: torch rounds a remainder differently
    kind = torch.optim.AdamW if adamw else torch.optim.Adam
    ours = CPUAdam(pairs[0], lr=1e-2, weight_decay=0.1, adamw_mode=adamw)
    theirs = kind(pairs[1], lr=1e-2, weight_decay=0.1, fused=True)
    ten_steps(ours, theirs, pairs)
    for one, other in zip(*pairs, strict=True):
        assert torch.equal(one, other)
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[one][key], theirs.state[other][key])


@pytest.mark.parametrize("adamw", [True, False])
def test_ten_steps_are_torchs_for_any_shape(adamw: bool) -> None:
    pairs = pair((1,), (7, 13), (3, 5, 11), ())
    kind = torch.optim.AdamW if adamw else torch.optim.Adam
    ours = CPUAdam(pairs[0], lr=1e-2, weight_decay=0.1, adamw_mode=adamw)
    ten_steps(ours, kind(pairs[1], lr=1e-2, weight_decay=0.1), pairs)
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_deepspeeds_positional_arguments_mean_what_they_did() -> None:
    optimizer = CPUAdam(pair((3,))[0], 0.1, False, (0.8, 0.9), 1e-6, 0.2, False, False, False)
    group = optimizer.param_groups[0]
    found = {key: group[key] for key in ("lr", "bias_correction", "betas", "eps", "weight_decay", "adamw")}
    assert found == {
        "lr": 0.1,
        "bias_correction": False,
        "betas": (0.8, 0.9),
        "eps": 1e-6,
        "weight_decay": 0.2,
        "adamw": False,
    }


def test_without_bias_correction_the_first_step_is_smaller() -> None:
    moved = []
    for correct in (True, False):
        param = torch.nn.Parameter(torch.zeros(8))
        param.grad = torch.ones(8)
        CPUAdam([param], lr=1.0, bias_correction=correct).step()
        moved.append(-param[0].item())
    assert moved[0] == pytest.approx(1.0) and moved[1] == pytest.approx(0.1 / 0.001**0.5, rel=1e-4)


@pytest.mark.parametrize(("fp32_states", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_state_dtypes(fp32_states: bool, dtype: torch.dtype) -> None:
    param = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    optimizer = CPUAdam([param], fp32_optimizer_states=fp32_states)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype == dtype


def test_parameters_elsewhere_are_refused() -> None:
    with pytest.raises(ConfigError, match="updates parameters on the CPU, got some on meta"):
        CPUAdam([torch.nn.Parameter(torch.ones(3, device="meta"))])


def test_amsgrad_is_refused() -> None:
    with pytest.raises(ConfigError, match="amsgrad of Adam must be false"):
        CPUAdam(pair((3,))[0], amsgrad=True)


def test_a_config_gets_it_by_name() -> None:
    for name, params, adamw in (("Adam", {}, True), ("Adam", {"adam_w_mode": False}, False), ("AdamW", {}, True)):
        created = create(name, pair((3,))[0], {"lr": 0.5, **params}, device_type="cpu")
        assert type(created.optimizer) is CPUAdam and created.entry.elementwise
        assert created.optimizer.param_groups[0]["adamw"] is adamw
        assert supports_flat(created.optimizer)


def test_a_config_can_ask_for_torchs() -> None:
    created = create("AdamW", pair((3,))[0], {"lr": 0.5, "torch_adam": True}, device_type="cpu")
    assert type(created.optimizer) is torch.optim.AdamW


def test_adamw_is_always_decoupled() -> None:
    assert make_adam(pair((3,))[0], adam_w_mode=False).param_groups[0]["adamw"] is False
    with pytest.raises(ConfigError, match="adam_w_mode of AdamW can only be true"):
        make_adamw(pair((3,))[0], adam_w_mode=False)


def test_flat_runs_with_master_weights_as_the_engine_has_them() -> None:
    master = torch.nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    grads = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16() * 1024
    working = torch.zeros(1000, dtype=torch.bfloat16)
    optimizer = make_adamw([master], lr=1e-2, weight_decay=0.1)
    expected = torch.nn.Parameter(master.detach().clone())
    torchs = torch.optim.AdamW([expected], lr=1e-2, weight_decay=0.1)
    for step in range(1, 4):
        optimizer.step_flat(
            [
                FlatUpdate(master.data[:333], grads[:333], working[:333], 0, 0, 0, step),
                FlatUpdate(master.data[333:], grads[333:], working[333:], 333, 0, 0, step),
            ],
            grad_factor=torch.tensor(1 / 1024),
        )
        expected.grad = grads.float() / 1024
        torchs.step()
    torch.testing.assert_close(master, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(working, master.detach().bfloat16())
