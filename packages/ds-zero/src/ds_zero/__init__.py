"""ZeRO: optimizer state, gradients and parameters sharded over data-parallel ranks, bit-equal to the unsharded run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_zero.estimate.formulas import (
        estimate_zero2_model_states_mem_needs,
        estimate_zero2_model_states_mem_needs_all_cold,
        estimate_zero2_model_states_mem_needs_all_live,
        estimate_zero3_model_states_mem_needs,
        estimate_zero3_model_states_mem_needs_all_cold,
        estimate_zero3_model_states_mem_needs_all_live,
    )
    from ds_zero.gathered import (
        GatheredParameters,
        register_external_parameter,
        unregister_external_parameter,
        unwrap_model_for_generation,
    )
    from ds_zero.init import Init
    from ds_zero.leaf import (
        get_z3_leaf_modules,
        set_z3_leaf_module,
        set_z3_leaf_modules,
        set_z3_leaf_modules_by_name,
        set_z3_leaf_modules_by_suffix,
        unset_z3_leaf_modules,
        z3_leaf_module,
        z3_leaf_parameter,
    )
    from ds_zero.tiled import TiledLinear, TiledLinearReturnBias

__version__ = "0.1.0"

_FORMULAS = "ds_zero.estimate.formulas"
_LEAF = "ds_zero.leaf"
_EXPORTS = {
    "GatheredParameters": "ds_zero.gathered",
    "Init": "ds_zero.init",
    "TiledLinear": "ds_zero.tiled",
    "TiledLinearReturnBias": "ds_zero.tiled",
    "estimate_zero2_model_states_mem_needs": _FORMULAS,
    "estimate_zero2_model_states_mem_needs_all_cold": _FORMULAS,
    "estimate_zero2_model_states_mem_needs_all_live": _FORMULAS,
    "estimate_zero3_model_states_mem_needs": _FORMULAS,
    "estimate_zero3_model_states_mem_needs_all_cold": _FORMULAS,
    "estimate_zero3_model_states_mem_needs_all_live": _FORMULAS,
    "get_z3_leaf_modules": _LEAF,
    "register_external_parameter": "ds_zero.gathered",
    "set_z3_leaf_module": _LEAF,
    "set_z3_leaf_modules": _LEAF,
    "set_z3_leaf_modules_by_name": _LEAF,
    "set_z3_leaf_modules_by_suffix": _LEAF,
    "unregister_external_parameter": "ds_zero.gathered",
    "unset_z3_leaf_modules": _LEAF,
    "unwrap_model_for_generation": "ds_zero.gathered",
    "z3_leaf_module": _LEAF,
    "z3_leaf_parameter": _LEAF,
}
"""Names loaded at first use, so that importing the package imports neither torch nor what a program does not use."""

__all__ = [
    "GatheredParameters",
    "Init",
    "TiledLinear",
    "TiledLinearReturnBias",
    "__version__",
    "estimate_zero2_model_states_mem_needs",
    "estimate_zero2_model_states_mem_needs_all_cold",
    "estimate_zero2_model_states_mem_needs_all_live",
    "estimate_zero3_model_states_mem_needs",
    "estimate_zero3_model_states_mem_needs_all_cold",
    "estimate_zero3_model_states_mem_needs_all_live",
    "get_z3_leaf_modules",
    "register_external_parameter",
    "set_z3_leaf_module",
    "set_z3_leaf_modules",
    "set_z3_leaf_modules_by_name",
    "set_z3_leaf_modules_by_suffix",
    "unregister_external_parameter",
    "unset_z3_leaf_modules",
    "unwrap_model_for_generation",
    "z3_leaf_module",
    "z3_leaf_parameter",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ds_zero' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
