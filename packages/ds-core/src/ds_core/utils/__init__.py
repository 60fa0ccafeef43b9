"""Utilities under the names users of DeepSpeed import: values of sharded tensors, states off the device, data, logging.

Each name is loaded from its home when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ds_core.utils.logs import log_dist, logger

if TYPE_CHECKING:
    from ds_core.data import RepeatingLoader
    from ds_core.fragments import (
        safe_get_full_fp32_param,
        safe_get_full_grad,
        safe_get_full_optimizer_state,
        safe_get_local_fp32_param,
        safe_get_local_grad,
        safe_get_local_optimizer_state,
        safe_set_full_fp32_param,
        safe_set_full_grad,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_grad,
        safe_set_local_optimizer_state,
        safe_update_full_grad_vectorized,
    )
    from ds_core.parts.residence import OffloadStateTypeEnum, get_state_devices

__all__ = [
    "OffloadStateTypeEnum",
    "RepeatingLoader",
    "get_state_devices",
    "log_dist",
    "logger",
    "safe_get_full_fp32_param",
    "safe_get_full_grad",
    "safe_get_full_optimizer_state",
    "safe_get_local_fp32_param",
    "safe_get_local_grad",
    "safe_get_local_optimizer_state",
    "safe_set_full_fp32_param",
    "safe_set_full_grad",
    "safe_set_full_optimizer_state",
    "safe_set_local_fp32_param",
    "safe_set_local_grad",
    "safe_set_local_optimizer_state",
    "safe_update_full_grad_vectorized",
]

_HOMES = {
    "OffloadStateTypeEnum": "ds_core.parts.residence",
    "RepeatingLoader": "ds_core.data",
    "get_state_devices": "ds_core.parts.residence",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "ds_core.fragments")), name)
