"""``deepspeed.utils``: values of sharded tensors, leaf modules, logging, helpers."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils": (
            "safe_get_full_fp32_param safe_get_full_grad safe_get_full_optimizer_state safe_get_local_fp32_param "
            "safe_get_local_grad safe_get_local_optimizer_state safe_set_full_fp32_param safe_set_full_grad "
            "safe_set_full_optimizer_state safe_set_local_fp32_param safe_set_local_grad "
            "safe_set_local_optimizer_state safe_update_full_grad_vectorized RepeatingLoader"
        ),
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
    refusals={
        "tensor_fragment": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "fragment_address": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "get_full_hp_param": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "set_full_hp_param": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "get_full_hp_grad": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "set_full_hp_grad": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "get_hp_fragment_mapping": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "map_to_flat_opt_states": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "link_hp_params": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
        "lazy_init_hp_params_optimizer_state": (
            "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the "
            "same module"
        ),
    },
)
