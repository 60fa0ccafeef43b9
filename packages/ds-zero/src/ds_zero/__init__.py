"""ZeRO: optimizer state, gradients and parameters sharded over data-parallel ranks, bit-equal to the unsharded run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_zero.gathered import GatheredParameters, register_external_parameter, unregister_external_parameter

__version__ = "0.1.0"

_EXPORTS = {
    "GatheredParameters": "ds_zero.gathered",
    "register_external_parameter": "ds_zero.gathered",
    "unregister_external_parameter": "ds_zero.gathered",
}
"""Names loaded at first use, so that importing the package imports neither torch nor what a program does not use."""

__all__ = [
    "GatheredParameters",
    "__version__",
    "register_external_parameter",
    "unregister_external_parameter",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ds_zero' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
