"""Config accessors that users of DeepSpeed call on an engine, each a zero-argument method over the resolved config."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_core.config import Config

__all__ = ["ACCESSORS", "ConfigAccessors"]

ACCESSORS: dict[str, str] = {
    "bfloat16_enabled": "bf16.enabled",
    "bf16_master_weights_and_gradients": "bf16.bf16_master_weights_and_grads",
    "bf16_optimizer_states": "bf16.bf16_optimizer_states",
    "checkpoint_tag_validation_enabled": "checkpoint.tag_validation",
    "dataloader_drop_last": "dataloader_drop_last",
    "dump_state": "dump_state",
    "fp16_auto_cast": "fp16.auto_cast",
    "fp16_enabled": "fp16.enabled",
    "fp16_master_weights_and_gradients": "fp16.fp16_master_weights_and_grads",
    "gradient_clipping": "gradient_clipping",
    "gradient_predivide_factor": "gradient_predivide_factor",
    "managed_gradient_accumulation": "managed_gradient_accumulation",
    "memory_breakdown": "memory_breakdown",
    "optimizer_name": "optimizer.type",
    "optimizer_params": "optimizer.params",
    "scheduler_name": "scheduler.type",
    "scheduler_params": "scheduler.params",
    "steps_per_print": "steps_per_print",
    "torch_autocast_dtype": "torch_autocast.dtype",
    "torch_autocast_enabled": "torch_autocast.enabled",
    "wall_clock_breakdown": "wall_clock_breakdown",
    "zero_allgather_bucket_size": "zero_optimization.allgather_bucket_size",
    "zero_allow_untested_optimizer": "zero_allow_untested_optimizer",
    "zero_reduce_bucket_size": "zero_optimization.reduce_bucket_size",
    "zero_reduce_scatter": "zero_optimization.reduce_scatter",
}
"""Method name to the dotted config path it answers with."""


class ConfigAccessors:
    """One method per row of `ACCESSORS`."""

    config: Config

    def zero_optimization_stage(self) -> int:
        """The stage; 0 where ds-zero is not installed."""
        return int(self.config.get("zero_optimization.stage", 0))

    def zero_optimization(self) -> bool:
        """True at stage 1 and above."""
        return bool(self.zero_optimization_stage())

    def communication_data_type(self) -> str | None:
        """Name of the dtype gradients travel in, or None for the gradients' own."""
        return self.config.training.communication_data_type


def _make(name: str, path: str) -> Callable[[ConfigAccessors], Any]:
    def accessor(self: ConfigAccessors) -> Any:
        return self.config.get(path)

    accessor.__name__ = name
    accessor.__qualname__ = f"ConfigAccessors.{name}"
    accessor.__doc__ = f"The config's ``{path}``."
    return accessor


for _name, _path in ACCESSORS.items():
    setattr(ConfigAccessors, _name, _make(_name, _path))
