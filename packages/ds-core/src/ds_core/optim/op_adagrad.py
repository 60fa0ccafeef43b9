"""`OpAdagrad`: Adagrad made of the op ``adagrad_``, with sparse gradients as torch's own class takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from ds_core import ops
from ds_core.errors import ConfigError, EngineError
from ds_core.optim.op_base import Allowed, FlatOpOptimizer, FlatStep, not_negative

__all__ = ["OpAdagrad"]


class OpAdagrad(FlatOpOptimizer):
    """Adagrad with the states of ``torch.optim.Adagrad`` (step, sum), so state dicts are interchangeable.

    A sparse COO gradient updates the rows it has and leaves the rest of the parameter and its sum alone.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate; a 0-dim tensor is read at each step.
        lr_decay: the rate is divided by ``1 + (step - 1) * lr_decay``.
        eps: added to the root of the sum.
        weight_decay: added to the gradient; 0 or more, and 0 with sparse gradients.
        initial_accumulator_value: what sums start from.
        maximize: go up rather than down.
        fp32_states: sums in float32 whatever the parameter is; False keeps them in the parameter's dtype.
        amsgrad: not offered; only False.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    config_name: ClassVar[str] = "Adagrad"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-2,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        *,
        initial_accumulator_value: float = 0.0,
        maximize: bool = False,
        fp32_states: bool = True,
        amsgrad: bool = False,
    ) -> None:
        if amsgrad:
            raise ConfigError("optimizer.params.amsgrad of Adagrad must be false: Adagrad has no such variant.")
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "maximize": maximize,
        }
        super().__init__(params, defaults, fp32_states=fp32_states)

    def state_names(self) -> tuple[str, ...]:
        """The sum of squared gradients."""
        return ("sum",)

    def initial_value(self, name: str) -> float:
        """Of the sum; one for all groups."""
        return float(self.defaults["initial_accumulator_value"])

    def allowed(self, group: Mapping[str, Any]) -> list[Allowed]:
        """Ranges; see `OpOptimizer.allowed`."""
        return not_negative(group, "lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value")

    def hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the op is given of a group, and ``maximize``."""
        keys = ("eps", "weight_decay", "lr_decay", "maximize")
        return {"lr": float(group["lr"]), **{key: group[key] for key in keys}}

    def run(self, call: FlatStep) -> None:
        """Calls the op."""
        hyper = dict(call.hyper)
        ops.adagrad_(
            call.param,
            call.grad,
            call.states["sum"],
            call.copy_out,
            step=call.step,
            grad_factor=turned(call, hyper.pop("maximize")),
            rounding_seed=call.rounding_seed,
            rounding_offset=call.rounding_offset,
            **hyper,
        )

    def step_sparse(self, param: torch.Tensor, hyper: dict[str, Any]) -> None:
        """Updates the elements that the gradient has.

        Raises:
            EngineError: the gradient is of a layout other than COO, or `weight_decay` is not 0.
        """
        grad = param.grad
        assert grad is not None
        if grad.layout != torch.sparse_coo:
            super().step_sparse(param, hyper)
        if hyper["weight_decay"] != 0:
            raise EngineError(
                f"{type(self).__name__}: weight_decay {hyper['weight_decay']} with a sparse gradient would have to "
                "change elements that the gradient does not have; set it to 0 for this parameter."
            )
        grad = grad.coalesce()  # the update is not linear, so each index may come once
        state = self.state_of(param)
        state["step"] += 1
        where = tuple(grad.indices())
        values, total = param.detach()[where], state["sum"][where]
        flat, sums = values.contiguous().view(-1), total.contiguous().view(-1)
        gradient = grad.values().contiguous().view(-1)
        self.run(FlatStep(flat, gradient, {"sum": sums}, None, int(state["step"]), hyper))
        param.detach()[where] = flat.view(values.shape)
        state["sum"][where] = sums.view(total.shape)


def turned(call: FlatStep, maximize: bool) -> torch.Tensor | None:
    """The gradient factor of a call, negative where the optimizer goes up."""
    if not maximize:
        return call.grad_factor
    if call.grad_factor is None:
        return torch.tensor(-1.0, dtype=torch.float32, device=call.param.device)
    return -call.grad_factor
