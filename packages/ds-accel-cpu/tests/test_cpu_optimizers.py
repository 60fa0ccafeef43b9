"""CPUAdagrad, CPULion, CPUSGD: DeepSpeed's and torch's arguments, and what a config gets by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_accel_cpu.optim import CPUSGD, CPUAdagrad, CPUAdam, CPULion
from ds_core.errors import ConfigError
from ds_core.optim import create
from ds_core.optim.op_adagrad import OpAdagrad
from ds_core.optim.op_lion import OpLion


def parameter(numel: int = 64 * 50) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(numel, generator=torch.Generator().manual_seed(0)))


def five_steps(optimizer: torch.optim.Optimizer, param: torch.nn.Parameter) -> torch.Tensor:
    for step in range(5):
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return param.detach()


def test_positional_arguments_mean_what_they_do_in_deepspeed() -> None:
    adagrad = CPUAdagrad([parameter()], 0.1, 1e-6, 0.2, False, False).param_groups[0]
    assert [adagrad[key] for key in ("lr", "eps", "weight_decay")] == [0.1, 1e-6, 0.2]
    lion = CPULion([parameter()], 0.1, (0.8, 0.9), 0.2).param_groups[0]
    assert [lion[key] for key in ("lr", "betas", "weight_decay")] == [0.1, (0.8, 0.9), 0.2]


@pytest.mark.parametrize("options", [{"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}, {}])
def test_sgd_is_bit_equal_to_torchs(options: dict[str, Any]) -> None:
    ours, theirs = parameter(), parameter()
    got = five_steps(CPUSGD([ours], lr=0.1, **options), ours)
    assert torch.equal(got, five_steps(torch.optim.SGD([theirs], lr=0.1, **options), theirs))


@pytest.mark.parametrize(("ours", "plain"), [(CPUAdagrad, OpAdagrad), (CPULion, OpLion)])
def test_the_native_op_is_used_and_agrees_with_an_optimizer_on_any_device(ours: Any, plain: Any) -> None:
    first, second = parameter(), parameter()
    assert torch.equal(five_steps(ours([first], lr=0.1), first), five_steps(plain([second], lr=0.1), second))


@pytest.mark.parametrize("make", [CPUAdam, CPUAdagrad, CPULion, CPUSGD])
def test_parameters_elsewhere_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=f"{make.__name__} updates parameters on the CPU, got some on meta"):
        make([torch.nn.Parameter(torch.ones(3, device="meta"))])


@pytest.mark.parametrize(
    ("name", "params", "kind"),
    [
        ("Adagrad", {"eps": 1e-6, "lr_decay": 0.1}, CPUAdagrad),
        ("Lion", {"betas": [0.9, 0.98], "weight_decay": 0.1}, CPULion),
        ("SGD", {"momentum": 0.9, "nesterov": True}, CPUSGD),
        ("SGD", {"fused": True}, torch.optim.SGD),
        ("Adagrad", {"foreach": True}, torch.optim.Adagrad),
    ],
)
def test_a_config_gets_them_by_name_and_torchs_where_it_chooses_a_kernel(name: str, params: Any, kind: Any) -> None:
    created = create(name, [parameter()], {"lr": 0.5, **params}, device_type="cpu")
    assert type(created.optimizer) is kind and created.entry.elementwise
    group = created.optimizer.param_groups[0]
    assert {key: list(v) if isinstance(v := group[key], tuple) else v for key in params} == params


def test_states_are_in_float32_unless_a_config_says_otherwise() -> None:
    for given, dtype in (({}, torch.float32), ({"fp32_optimizer_states": False}, torch.bfloat16)):
        param = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
        param.grad = torch.ones_like(param)
        optimizer = create("Lion", [param], given, device_type="cpu").optimizer
        optimizer.step()
        assert optimizer.state[param]["exp_avg"].dtype == dtype
