"""Memory estimates of stages 1 and 2, and the optimizer's class."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_zero": (
            "estimate_zero2_model_states_mem_needs estimate_zero2_model_states_mem_needs_all_live "
            "estimate_zero2_model_states_mem_needs_all_cold"
        ),
        "ds_core.optimizer_handle": "DeepSpeedZeroOptimizer=OptimizerHandle",
    },
)
