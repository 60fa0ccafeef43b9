"""`OpSGD`: gradient descent with momentum made of the op ``sgd_``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from ds_core import ops
from ds_core.errors import ConfigError
from ds_core.optim.op_adagrad import turned
from ds_core.optim.op_base import Allowed, FlatOpOptimizer, FlatStep, not_negative

__all__ = ["OpSGD"]


class OpSGD(FlatOpOptimizer):
    """SGD with the arithmetic and the state (momentum_buffer) of ``torch.optim.SGD``.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate; a 0-dim tensor is read at each step.
        momentum: 0 keeps no state.
        dampening: of the gradient that enters the momentum.
        weight_decay: added to the gradient; 0 or more.
        nesterov: look ahead along the momentum.
        maximize: go up rather than down.
        fp32_states: the buffer in float32 whatever the parameter is; False keeps it in the parameter's dtype.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    config_name: ClassVar[str] = "SGD"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        fp32_states: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults, fp32_states=fp32_states)

    def state_names(self) -> tuple[str, ...]:
        """The momentum, where any group has some."""
        groups = (self.defaults, *self.param_groups)
        return ("momentum_buffer",) if any(group["momentum"] != 0 for group in groups) else ()

    def allowed(self, group: Mapping[str, Any]) -> list[Allowed]:
        """Ranges; see `OpOptimizer.allowed`."""
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ConfigError(
                "optimizer.params of SGD: Nesterov momentum requires a momentum and zero dampening, got momentum "
                f"{group['momentum']} and dampening {group['dampening']}."
            )
        return not_negative(group, "lr", "momentum", "weight_decay")

    def hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the op is given of a group, and ``maximize``."""
        keys = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
        return {"lr": float(group["lr"]), **{key: group[key] for key in keys}}

    def run(self, call: FlatStep) -> None:
        """Calls the op. The first update of an element takes the gradient for its momentum, as in torch."""
        hyper = dict(call.hyper)
        ops.sgd_(
            call.param,
            call.grad,
            call.states["momentum_buffer"] if hyper["momentum"] != 0 else None,
            call.copy_out,
            is_first=call.step == 1,
            grad_factor=turned(call, hyper.pop("maximize")),
            rounding_seed=call.rounding_seed,
            rounding_offset=call.rounding_offset,
            **hyper,
        )
