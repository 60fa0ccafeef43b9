"""``DeepSpeedCPUAdam``: `ds_core.optim.op_adam.OpAdam` under DeepSpeed's argument names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ds_core.optim.op_adam import OpAdam

__all__ = ["DeepSpeedCPUAdam"]


class DeepSpeedCPUAdam(OpAdam):
    """Adam and AdamW by the op ``adam_``; see `OpAdam`."""

    def __init__(
        self,
        model_params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        adamw_mode: bool = True,
        fp32_optimizer_states: bool = True,
    ) -> None:
        super().__init__(
            model_params,
            lr,
            betas,
            eps,
            weight_decay,
            adamw=adamw_mode,
            bias_correction=bias_correction,
            fp32_states=fp32_optimizer_states,
            amsgrad=amsgrad,
        )
