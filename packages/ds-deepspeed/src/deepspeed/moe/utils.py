"""Parameters of experts."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_moe.utils": (
            "has_moe_layers is_moe_param is_moe_param_group split_params_into_shared_and_expert_params "
            "split_params_grads_into_shared_and_expert_params "
            "split_params_into_different_moe_groups_for_optimizer configure_moe_param_groups"
        ),
    },
)
