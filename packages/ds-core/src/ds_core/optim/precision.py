"""The dtype of optimizer states that a config implies without saying it in ``optimizer.params``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ds_core.config import Config

__all__ = ["implied"]

_ADAM = ("adam", "adamw")
"""Optimizers whose every implementation takes the key, if only to refuse it."""


def implied(config: Config, master_dtype: torch.dtype | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of the optimizer as the engine completes them, and defaults for implementations that take them.

    Where low-precision parameters are updated without finer masters, states are in float32 unless
    ``bf16.bf16_optimizer_states`` says otherwise.

    Args:
        config: the engine's.
        master_dtype: of the finer masters; None where there are none.
    """
    section, bf16, fp16 = config["optimizer"], config["bf16"], config["fp16"]
    params, defaults = dict(section.params), {}
    if (bf16.enabled or fp16.enabled) and master_dtype is None:
        defaults["fp32_optimizer_states"] = not bf16.bf16_optimizer_states
        if section.type.lower() in _ADAM:
            params = {**defaults, **params}
    return params, defaults
