"""Lion on the CPU at memory speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ds_accel_cpu.optim._groups import on_cpu
from ds_core.optim.op_lion import OpLion

__all__ = ["CPULion", "make_lion"]


class CPULion(OpLion):
    """Lion over any list of CPU parameters, with the arguments of DeepSpeed's class for the same job.

    Args:
        model_params: tensors, named tensors or group dicts, as torch takes them.
        lr: how far every element moves in a step.
        betas: weight of the moment in the sign, and its decay rate, each in [0, 1).
        weight_decay: decoupled; 0 or more.
        fp32_optimizer_states: the moment in float32 whatever the parameters are; False keeps it in their dtype.

    Raises:
        ConfigError: a parameter is not on the CPU, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        model_params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        fp32_optimizer_states: bool = True,
    ) -> None:
        groups = on_cpu("CPULion", "ds_core.optim.op_lion.OpLion", model_params)
        super().__init__(groups, lr, betas, weight_decay, fp32_states=fp32_optimizer_states)


def make_lion(
    param_groups: Iterable[Any],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    fp32_optimizer_states: bool = True,
) -> CPULion:
    """What ``optimizer.type: Lion`` of a config means."""
    return CPULion(param_groups, lr, betas, weight_decay, fp32_optimizer_states)
