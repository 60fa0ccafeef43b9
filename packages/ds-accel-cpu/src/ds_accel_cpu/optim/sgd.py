"""Gradient descent with momentum on the CPU at memory speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ds_accel_cpu.optim._groups import on_cpu
from ds_core.optim.op_sgd import OpSGD
from ds_core.optim.torch_optim import sgd

__all__ = ["CPUSGD", "make_sgd"]


class CPUSGD(OpSGD):
    """SGD over any list of CPU parameters, with the arguments of ``torch.optim.SGD``.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate.
        momentum: 0 keeps no state.
        dampening: of the gradient that enters the momentum.
        weight_decay: added to the gradient; 0 or more.
        nesterov: look ahead along the momentum.
        maximize: go up rather than down.
        fp32_optimizer_states: the momentum in float32 whatever the parameters are; False keeps it in their dtype.

    Raises:
        ConfigError: a parameter is not on the CPU, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        fp32_optimizer_states: bool = True,
    ) -> None:
        super().__init__(
            on_cpu("CPUSGD", "ds_core.optim.op_sgd.OpSGD", params),
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            fp32_states=fp32_optimizer_states,
        )


def make_sgd(
    param_groups: Iterable[Any],
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    fp32_optimizer_states: bool = True,
    foreach: bool | None = None,
    fused: bool | None = None,
    differentiable: bool = False,
) -> torch.optim.Optimizer:
    """What ``optimizer.type: SGD`` of a config means; torch's class where a key asks for one of its kernels."""
    common: dict[str, Any] = {
        "lr": lr,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    if foreach is not None or fused is not None or differentiable:
        return sgd(param_groups, **common, foreach=foreach, fused=fused, differentiable=differentiable)
    return CPUSGD(param_groups, fp32_optimizer_states=fp32_optimizer_states, **common)
