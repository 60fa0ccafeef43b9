"""Classes of optimizers."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.optimizer_handle": "DeepSpeedOptimizer=OptimizerHandle ZeROOptimizer=OptimizerHandle",
    },
)
