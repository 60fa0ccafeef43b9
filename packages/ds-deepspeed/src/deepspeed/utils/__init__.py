"""``deepspeed.utils``: values of sharded tensors, leaf modules, logging, helpers."""

from __future__ import annotations

from deepspeed._doors import doors
from deepspeed._fragments import BUFFERS, VALUES

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils": f"{VALUES} RepeatingLoader",
        "ds_zero": (
            "set_z3_leaf_modules unset_z3_leaf_modules set_z3_leaf_module set_z3_leaf_modules_by_name "
            "set_z3_leaf_modules_by_suffix get_z3_leaf_modules z3_leaf_module z3_leaf_parameter"
        ),
        "ds_core.utils.logs": (
            "logger log_dist log_dist_once warning_once print_json_dist set_log_level_from_string "
            "get_current_level should_log_le"
        ),
        "ds_core.utils.on_device": "OnDevice",
        "ds_core.utils.ranges": "instrument_w_nvtx",
        "ds_core.comm": "init_distributed is_initialized",
        "ds_core.launch.numa": "get_numactl_cmd get_numa_cores",
    },
    refusals=BUFFERS,
)
