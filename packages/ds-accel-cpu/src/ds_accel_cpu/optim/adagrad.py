"""Adagrad on the CPU at memory speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ds_accel_cpu.optim._groups import on_cpu
from ds_core.optim.op_adagrad import OpAdagrad
from ds_core.optim.torch_optim import adagrad

__all__ = ["CPUAdagrad", "make_adagrad"]


class CPUAdagrad(OpAdagrad):
    """Adagrad over any list of CPU parameters, with the arguments of DeepSpeed's class for the same job.

    Args:
        model_params: tensors, named tensors or group dicts, as torch takes them. Gradients may be sparse COO.
        lr: learning rate.
        eps: added to the root of the sum.
        weight_decay: 0 or more.
        amsgrad: not offered; only False.
        fp32_optimizer_states: sums in float32 whatever the parameters are; False keeps them in their dtype.
        more: `lr_decay`, `initial_accumulator_value` and `maximize` as ``torch.optim.Adagrad`` has them.

    Raises:
        ConfigError: a parameter is not on the CPU, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        model_params: Iterable[Any],
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        fp32_optimizer_states: bool = True,
        **more: Any,
    ) -> None:
        super().__init__(
            on_cpu("CPUAdagrad", "ds_core.optim.op_adagrad.OpAdagrad", model_params),
            lr,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            fp32_states=fp32_optimizer_states,
            **more,
        )


def make_adagrad(
    param_groups: Iterable[Any],
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
    fp32_optimizer_states: bool = True,
    foreach: bool | None = None,
    fused: bool | None = None,
    differentiable: bool = False,
) -> torch.optim.Optimizer:
    """What ``optimizer.type: Adagrad`` of a config means; torch's class where a key asks for one of its kernels."""
    common: dict[str, Any] = {
        "lr": lr,
        "lr_decay": lr_decay,
        "weight_decay": weight_decay,
        "initial_accumulator_value": initial_accumulator_value,
        "eps": eps,
        "maximize": maximize,
    }
    if foreach is not None or fused is not None or differentiable:
        return adagrad(param_groups, **common, foreach=foreach, fused=fused, differentiable=differentiable)
    return CPUAdagrad(param_groups, fp32_optimizer_states=fp32_optimizer_states, **common)
