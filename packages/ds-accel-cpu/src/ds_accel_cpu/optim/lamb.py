"""LAMB on the CPU at memory speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ds_accel_cpu.optim._groups import on_cpu
from ds_core.optim.op_lamb import OpLamb

__all__ = ["CPULamb", "make_lamb"]


class CPULamb(OpLamb):
    """LAMB over any list of CPU parameters, with the arguments of DeepSpeed's FusedLamb; `OpLamb` says what each does.

    Raises:
        ConfigError: a parameter is not on the CPU, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_inside_sqrt: bool = False,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        max_coeff: float = 10.0,
        min_coeff: float = 0.01,
        amsgrad: bool = False,
        fp32_optimizer_states: bool = True,
    ) -> None:
        super().__init__(
            on_cpu("CPULamb", "ds_core.optim.op_lamb.OpLamb", params),
            lr,
            bias_correction,
            betas,
            eps,
            eps_inside_sqrt,
            weight_decay,
            max_grad_norm,
            max_coeff,
            min_coeff,
            amsgrad,
            fp32_states=fp32_optimizer_states,
        )


def make_lamb(
    param_groups: Iterable[Any],
    *,
    lr: float = 1e-3,
    bias_correction: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_inside_sqrt: bool = False,
    weight_decay: float = 0.0,
    max_coeff: float = 10.0,
    min_coeff: float = 0.01,
    fp32_optimizer_states: bool = True,
) -> CPULamb:
    """What ``optimizer.type: Lamb`` of a config means."""
    return CPULamb(
        param_groups,
        lr,
        bias_correction,
        betas,
        eps,
        eps_inside_sqrt,
        weight_decay,
        max_coeff=max_coeff,
        min_coeff=min_coeff,
        fp32_optimizer_states=fp32_optimizer_states,
    )
