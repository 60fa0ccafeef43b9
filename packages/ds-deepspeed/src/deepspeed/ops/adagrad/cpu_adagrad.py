"""``DeepSpeedCPUAdagrad``: `ds_core.optim.op_adagrad.OpAdagrad` under DeepSpeed's argument names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ds_core.optim.op_adagrad import OpAdagrad

__all__ = ["DeepSpeedCPUAdagrad"]


class DeepSpeedCPUAdagrad(OpAdagrad):
    """Adagrad by the op ``adagrad_``; see `OpAdagrad`."""

    def __init__(
        self,
        model_params: Iterable[Any],
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0,
        amsgrad: bool = False,
        fp32_optimizer_states: bool = True,
    ) -> None:
        super().__init__(
            model_params, lr, eps=eps, weight_decay=weight_decay, fp32_states=fp32_optimizer_states, amsgrad=amsgrad
        )
