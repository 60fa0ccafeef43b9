"""Names of values of sharded tensors: those that lead to ours, and those of another engine's buffers."""

from __future__ import annotations

__all__ = ["BUFFERS", "VALUES"]

VALUES = (
    "safe_get_full_fp32_param safe_get_full_grad safe_get_full_optimizer_state safe_get_local_fp32_param "
    "safe_get_local_grad safe_get_local_optimizer_state safe_set_full_fp32_param safe_set_full_grad "
    "safe_set_full_optimizer_state safe_set_local_fp32_param safe_set_local_grad "
    "safe_set_local_optimizer_state safe_update_full_grad_vectorized"
)
"""Of `ds_core.utils`."""

BUFFERS = dict.fromkeys(
    [
        "tensor_fragment",
        "fragment_address",
        "get_full_hp_param",
        "set_full_hp_param",
        "get_full_hp_grad",
        "set_full_hp_grad",
        "get_hp_fragment_mapping",
        "map_to_flat_opt_states",
        "link_hp_params",
        "lazy_init_hp_params_optimizer_state",
    ],
    "it shows how another engine lays its buffers out; use safe_get_full_* and safe_set_full_* of the same module",
)
"""Why there is nothing behind each."""
