"""Leaf modules of stage 3."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_zero": (
            "set_z3_leaf_modules unset_z3_leaf_modules set_z3_leaf_module set_z3_leaf_modules_by_name "
            "set_z3_leaf_modules_by_suffix get_z3_leaf_modules z3_leaf_module z3_leaf_parameter"
        ),
    },
)
