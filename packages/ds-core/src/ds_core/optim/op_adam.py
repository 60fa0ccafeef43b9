"""`OpAdam`: Adam and AdamW made of the op ``adam_``, on whatever device an installed wheel or the reference serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from ds_core import ops
from ds_core.errors import ConfigError
from ds_core.optim.op_base import Allowed, FlatOpOptimizer, FlatStep, not_negative

__all__ = ["OpAdam"]


class OpAdam(FlatOpOptimizer):
    """Adam with the states of ``torch.optim.Adam`` (step, exp_avg, exp_avg_sq), so state dicts are interchangeable.

    Parameters may be float32, bfloat16 or float16, gradients of any of these whatever the parameter is. Arithmetic is
    in float32; `ds_core.ops.adam_` says what it is bit-equal to. Besides ``step`` it has ``step_flat``, which updates
    runs of a flat parameter in one pass with unscale, clip and the copy into working weights.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate; a 0-dim tensor is read at each step.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: 0 or more.
        adamw: decoupled weight decay; False adds it to the gradient.
        bias_correction: divide the moments by ``1 - beta ** step``.
        fp32_states: states in float32 whatever the parameter is; False keeps them in the parameter's dtype.
        amsgrad: not offered; only False.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    config_name: ClassVar[str] = "Adam"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        adamw: bool = True,
        bias_correction: bool = True,
        fp32_states: bool = True,
        amsgrad: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "adamw": adamw,
            "bias_correction": bias_correction,
            "amsgrad": amsgrad,
        }
        super().__init__(params, defaults, fp32_states=fp32_states)

    def state_names(self) -> tuple[str, ...]:
        """The two moments."""
        return ("exp_avg", "exp_avg_sq")

    def allowed(self, group: Mapping[str, Any]) -> list[Allowed]:
        """Ranges; see `OpOptimizer.allowed`."""
        if group["amsgrad"]:
            raise ConfigError(
                "optimizer.params.amsgrad of Adam must be false: the kernel keeps no running maximum of the second "
                "moment. Use torch.optim.AdamW(amsgrad=True), in a config with torch_adam: true."
            )
        betas = group["betas"]
        fits = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        rows = not_negative(group, "lr", "eps", "weight_decay")
        return [*rows, Allowed("betas", "two numbers in [0, 1)", fits)]

    def hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the op is given of a group."""
        beta1, beta2 = group["betas"]
        return {
            "lr": float(group["lr"]),
            "beta1": float(beta1),
            "beta2": float(beta2),
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "adamw": group["adamw"],
            "bias_correction": group["bias_correction"],
        }

    def run(self, call: FlatStep) -> None:
        """Calls the op."""
        ops.adam_(
            call.param,
            call.grad,
            call.states["exp_avg"],
            call.states["exp_avg_sq"],
            call.copy_out,
            step=call.step,
            grad_factor=call.grad_factor,
            rounding_seed=call.rounding_seed,
            rounding_offset=call.rounding_offset,
            **call.hyper,
        )
