"""`OpLion`: Lion made of the op ``lion_``, on whatever device an installed wheel or the reference serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from ds_core import ops
from ds_core.optim.op_base import Allowed, FlatOpOptimizer, FlatStep, not_negative

__all__ = ["OpLion", "make_lion"]


class OpLion(FlatOpOptimizer):
    """Lion: the sign of an averaged gradient, with one moment (exp_avg). Source: see `ds_core.ops.lion_`.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        lr: how far every element moves; 3 to 10 times smaller than Adam's. A 0-dim tensor is read at each step.
        betas: weight of the moment in the sign, and its decay rate, each in [0, 1).
        weight_decay: decoupled; 0 or more.
        fp32_states: the moment in float32 whatever the parameter is; False keeps it in the parameter's dtype.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    config_name: ClassVar[str] = "Lion"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        fp32_states: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(params, defaults, fp32_states=fp32_states)

    def state_names(self) -> tuple[str, ...]:
        """The moment."""
        return ("exp_avg",)

    def allowed(self, group: Mapping[str, Any]) -> list[Allowed]:
        """Ranges; see `OpOptimizer.allowed`."""
        betas = group["betas"]
        fits = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        return [*not_negative(group, "lr", "weight_decay"), Allowed("betas", "two numbers in [0, 1)", fits)]

    def hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the op is given of a group."""
        beta1, beta2 = group["betas"]
        return {
            "lr": float(group["lr"]),
            "beta1": float(beta1),
            "beta2": float(beta2),
            "weight_decay": group["weight_decay"],
        }

    def run(self, call: FlatStep) -> None:
        """Calls the op."""
        ops.lion_(
            call.param,
            call.grad,
            call.states["exp_avg"],
            call.copy_out,
            grad_factor=call.grad_factor,
            rounding_seed=call.rounding_seed,
            rounding_offset=call.rounding_offset,
            **call.hyper,
        )


def make_lion(
    param_groups: Iterable[Any],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    fp32_optimizer_states: bool = True,
) -> OpLion:
    """What ``optimizer.type: Lion`` of a config means on a device without a class of its own."""
    return OpLion(param_groups, lr, betas, weight_decay, fp32_states=fp32_optimizer_states)
