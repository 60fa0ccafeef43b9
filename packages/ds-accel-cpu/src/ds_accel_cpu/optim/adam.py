"""Adam and AdamW on the CPU at memory speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ds_accel_cpu.optim._groups import on_cpu
from ds_core.errors import ConfigError
from ds_core.optim.op_adam import OpAdam
from ds_core.optim.op_adam8bit import OpAdam8bit

__all__ = ["CPUAdam", "CPUAdam8bit", "make_adam", "make_adamw"]


class CPUAdam(OpAdam):
    """Adam over any list of CPU parameters, with the arguments of DeepSpeed's class for the same job.

    Args:
        model_params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate.
        bias_correction: divide the moments by ``1 - beta ** step``.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: 0 or more.
        amsgrad: not offered; only False.
        adamw_mode: decoupled weight decay; False adds it to the gradient.
        fp32_optimizer_states: states in float32 whatever the parameters are; False keeps them in their dtype.

    Raises:
        ConfigError: a parameter is not on the CPU, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        model_params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        adamw_mode: bool = True,
        fp32_optimizer_states: bool = True,
    ) -> None:
        groups = on_cpu("CPUAdam", "ds_core.optim.op_adam.OpAdam", model_params)
        super().__init__(
            groups,
            lr,
            betas,
            eps,
            weight_decay,
            adamw=adamw_mode,
            bias_correction=bias_correction,
            fp32_states=fp32_optimizer_states,
            amsgrad=amsgrad,
        )


class CPUAdam8bit(OpAdam8bit):
    """`CPUAdam` with moments of a byte an element; `OpAdam8bit` says how.

    Args:
        model_params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate.
        bias_correction: divide the moments by ``1 - beta ** step``.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: 0 or more.
        adamw_mode: decoupled weight decay; False adds it to the gradient.
        block_size: elements that share a scale: 256, 512, 1024, 2048 or 4096.

    Raises:
        ConfigError: a parameter is not on the CPU, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        model_params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adamw_mode: bool = True,
        block_size: int = 2048,
    ) -> None:
        super().__init__(
            on_cpu("CPUAdam8bit", "ds_core.optim.op_adam8bit.OpAdam8bit", model_params),
            lr,
            betas,
            eps,
            weight_decay,
            adamw=adamw_mode,
            bias_correction=bias_correction,
            block_size=block_size,
        )


def make_adam(
    param_groups: Iterable[Any],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    adam_w_mode: bool = True,
    bias_correction: bool = True,
    fp32_optimizer_states: bool = True,
    amsgrad: bool = False,
    state_bits: Literal[8, 32] = 32,
    state_block: int = 2048,
) -> CPUAdam | CPUAdam8bit:
    """What ``optimizer.type: Adam`` of a config means: weight decay is decoupled unless `adam_w_mode` is false.

    Args:
        state_bits: 8 keeps the moments as `CPUAdam8bit` does.
        state_block: elements that share a scale then.
    """
    if amsgrad is False and state_bits == 8:
        return CPUAdam8bit(param_groups, lr, bias_correction, betas, eps, weight_decay, adam_w_mode, state_block)
    return CPUAdam(
        param_groups,
        lr=lr,
        bias_correction=bias_correction,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        adamw_mode=adam_w_mode,
        fp32_optimizer_states=fp32_optimizer_states,
    )


def make_adamw(
    param_groups: Iterable[Any],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    adam_w_mode: bool = True,
    bias_correction: bool = True,
    fp32_optimizer_states: bool = True,
    amsgrad: bool = False,
    state_bits: Literal[8, 32] = 32,
    state_block: int = 2048,
) -> CPUAdam | CPUAdam8bit:
    """What ``optimizer.type: AdamW`` of a config means.

    Raises:
        ConfigError: `adam_w_mode` is false, or a value is out of range.
    """
    if not adam_w_mode:
        raise ConfigError(
            "optimizer.params.adam_w_mode of AdamW can only be true; for coupled decay use type Adam with false."
        )
    return make_adam(
        param_groups,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        bias_correction=bias_correction,
        fp32_optimizer_states=fp32_optimizer_states,
        amsgrad=amsgrad,
        state_bits=state_bits,
        state_block=state_block,
    )
