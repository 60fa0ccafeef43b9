"""Values of sharded tensors."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils": (
            "safe_get_full_fp32_param safe_get_full_grad safe_get_full_optimizer_state safe_get_local_fp32_param "
            "safe_get_local_grad safe_get_local_optimizer_state safe_set_full_fp32_param safe_set_full_grad "
            "safe_set_full_optimizer_state safe_set_local_fp32_param safe_set_local_grad "
            "safe_set_local_optimizer_state safe_update_full_grad_vectorized"
        ),
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
