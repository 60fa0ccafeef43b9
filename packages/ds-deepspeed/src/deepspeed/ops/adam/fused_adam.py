"""``FusedAdam``: `ds_core.optim.op_adam.OpAdam` under DeepSpeed's argument names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ds_core.optim.op_adam import OpAdam

__all__ = ["FusedAdam"]


class FusedAdam(OpAdam):
    """Adam and AdamW by the op ``adam_``; see `OpAdam`. `set_grad_none` is what ``zero_grad`` does anyway."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        set_grad_none: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            adamw=adam_w_mode,
            bias_correction=bias_correction,
            amsgrad=amsgrad,
        )
