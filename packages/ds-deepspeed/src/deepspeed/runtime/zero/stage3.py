"""Memory estimates of stage 3, and the optimizer's class."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_zero": (
            "estimate_zero3_model_states_mem_needs estimate_zero3_model_states_mem_needs_all_live "
            "estimate_zero3_model_states_mem_needs_all_cold unwrap_model_for_generation"
        ),
        "ds_core.optimizer_handle": "DeepSpeedZeroOptimizer_Stage3=OptimizerHandle",
    },
)
