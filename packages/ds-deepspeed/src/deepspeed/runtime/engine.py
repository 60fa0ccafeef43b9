"""The engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepspeed._doors import doors

if TYPE_CHECKING:
    import torch

DeepSpeedOptimizerCallable = Callable[..., "torch.optim.Optimizer"]
DeepSpeedSchedulerCallable = Callable[..., Any]

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.engine": "DeepSpeedEngine=Engine",
        "ds_core.optimizer_handle": "DeepSpeedOptimizer=OptimizerHandle",
        "deepspeed.runtime.config": "DeepSpeedConfig",
    },
)
