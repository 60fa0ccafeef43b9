"""Mixture of experts for ds-core: routers, expert parallelism, balancing, and Hugging Face models from the config."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_moe.dispatch import Dispatch, Groups
    from ds_moe.experts import Experts
    from ds_moe.gate import TopKGate
    from ds_moe.layer import MoE, MoEOutput
    from ds_moe.routing import RouterPolicy, Routing
    from ds_moe.stacked import GatedExperts, MlpExperts

__version__ = "0.1.0"

_EXPORTS = {
    "Dispatch": "ds_moe.dispatch",
    "Experts": "ds_moe.experts",
    "GatedExperts": "ds_moe.stacked",
    "Groups": "ds_moe.dispatch",
    "MlpExperts": "ds_moe.stacked",
    "MoE": "ds_moe.layer",
    "MoEOutput": "ds_moe.layer",
    "RouterPolicy": "ds_moe.routing",
    "Routing": "ds_moe.routing",
    "TopKGate": "ds_moe.gate",
}
"""Names loaded at first use, so that importing the package imports no torch."""

__all__ = [
    "Dispatch",
    "Experts",
    "GatedExperts",
    "Groups",
    "MlpExperts",
    "MoE",
    "MoEOutput",
    "RouterPolicy",
    "Routing",
    "TopKGate",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ds_moe' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
