"""Config accessors that users of DeepSpeed call on an engine, each a zero-argument method over the resolved config."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_core.config import Config

__all__ = ["ACCESSORS", "ConfigAccessors"]

_OWN = {
    "aio_config": "aio",
    "bfloat16_enabled": "bf16.enabled",
    "bf16_master_weights_and_gradients": "bf16.bf16_master_weights_and_grads",
    "bf16_optimizer_states": "bf16.bf16_optimizer_states",
    "dataloader_drop_last": "dataloader_drop_last",
    "dump_state": "dump_state",
    "fp16_auto_cast": "fp16.auto_cast",
    "fp16_enabled": "fp16.enabled",
    "fp16_master_weights_and_gradients": "fp16.fp16_master_weights_and_grads",
    "gradient_clipping": "gradient_clipping",
    "gradient_predivide_factor": "gradient_predivide_factor",
    "is_sanity_checks_enabled": "zero_optimization.enable_sanity_checks",
    "log_level": "log_level",
    "loss_scale": "fp16.loss_scale",
    "managed_gradient_accumulation": "managed_gradient_accumulation",
    "memory_breakdown": "memory_breakdown",
    "optimizer_name": "optimizer.type",
    "optimizer_params": "optimizer.params",
    "scheduler_name": "scheduler.type",
    "scheduler_params": "scheduler.params",
    "steps_per_print": "steps_per_print",
    "torch_autocast_dtype": "torch_autocast.dtype",
    "torch_autocast_enabled": "torch_autocast.enabled",
    "torch_autocast_lower_precision_safe_modules": "torch_autocast.lower_precision_safe_modules",
    "wall_clock_breakdown": "wall_clock_breakdown",
    "zero_allow_untested_optimizer": "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer": "zero_force_ds_cpu_optimizer",
}
_ZERO = (
    "allgather_bucket_size allgather_partitions allgather_sequential ignore_unused_parameters load_from_fp32_weights"
    " log_trace_cache_warnings max_live_parameters max_reuse_distance model_persistence_threshold"
    " module_granularity_threshold offload_optimizer offload_param param_persistence_threshold prefetch_bucket_size"
    " reduce_bucket_size reduce_scatter sub_group_size"
)
_ELSEWHERE = {
    "progressive_layer_drop": "pld: enabled theta gamma",
    "eigenvalue": "eigenvalue: enabled verbose max_iter tol stability gas_boundary_resolution layer_name layer_num",
    "flops_profiler": "flops_profiler: enabled recompute_fwd_factor profile_step module_depth top_modules detailed"
    " output_file",
    "autotuning": "autotuning: enabled start_profile_step end_profile_step metric metric_path model_info_path",
    "elasticity": "elasticity: enabled",
    "amp": "amp: enabled",
}
ACCESSORS: dict[str, str] = {
    **_OWN,
    **{f"zero_{key}": f"zero_optimization.{key}" for key in _ZERO.split()},
    **{
        f"{text.partition(':')[0]}_{key}": f"{section}.{key}"
        for section, text in _ELSEWHERE.items()
        for key in text.partition(":")[2].split()
    },
    "autotp_size": "tensor_parallel.autotp_size",
    "autotuning_profile_model_info": "autotuning.model_info.profile",
    "curriculum_enabled_legacy": "curriculum_learning.enabled",
    "curriculum_learning_config": "data_efficiency.data_sampling.curriculum_learning",
    "curriculum_learning_enabled": "data_efficiency.data_sampling.curriculum_learning.enabled",
    "curriculum_params_legacy": "curriculum_learning",
    "data_efficiency_config": "data_efficiency",
    "data_efficiency_enabled": "data_efficiency.enabled",
    "data_sampling_config": "data_efficiency.data_sampling",
    "data_sampling_enabled": "data_efficiency.data_sampling.enabled",
    "graph_harvesting": "graph_harvesting",
    "pld_params": "progressive_layer_drop",
    "amp_params": "amp",
    "quantize_training": "quantize_training",
    "random_ltd_config": "data_efficiency.data_routing.random_ltd",
    "random_ltd_enabled": "data_efficiency.data_routing.random_ltd.enabled",
    "sparse_gradients_enabled": "sparse_gradients",
    "tensor_parallel_config": "tensor_parallel",
    "use_node_local_storage": "checkpoint.use_node_local_storage",
    "load_universal_checkpoint": "checkpoint.load_universal",
    "zenflow_config": "zero_optimization.zenflow",
    "zeropp_loco_param": "zero_optimization.zeropp_loco_param",
}
"""Method name to the dotted config path it answers with."""

OFF: dict[str, Any] = {
    "autotp_size": 0,
    "checkpoint_serialization_enabled": True,
    "checkpoint_writer_enabled": True,
    "compile_autosp": False,
    "compile_autotp": False,
    "compile_zero_optimization_stage": None,
    "cpuadam_cores_perc": 0.0,
    "is_elastic_model_parallel_supported": False,
    "is_first_weights_partition_group": True,
    "mics_shard_size": -1,
    "optimizer_legacy_fusion": False,
    "super_offload": False,
    "swap_tensor_config": None,
    "uses_parallelization_pass_only": False,
    "zero_contiguous_gradients": True,
    "zero_elastic_checkpoint": True,
    "zero_grad_hooks": True,
    "zero_hpz_partition_size": 1,
    "zero_legacy_stage1": False,
    "zero_multi_rank_bucket_allreduce": True,
    "zero_quantized_gradients": False,
    "zero_quantized_nontrainable_weights": False,
    "zero_quantized_weights": False,
    "zero_round_robin_gradients": True,
    "zero_save_muon_momentum_buffer_in_memory": False,
}
"""Answers about keys that no installed wheel serves, where they are not just False or None: how it is done here."""


class ConfigAccessors:
    """One method per row of `ACCESSORS` and `OFF`, and those that are more than a value."""

    config: Config

    def zero_optimization_stage(self) -> int:
        """The stage; 0 where ds-zero is not installed."""
        return int(self.config.get("zero_optimization.stage", 0))

    def zero_optimization(self) -> bool:
        """True at stage 1 and above."""
        return bool(self.zero_optimization_stage())

    def zero_optimization_partition_gradients(self) -> bool:
        """True at stage 2 and above."""
        return self.zero_optimization_stage() >= 2

    def zero_optimization_partition_weights(self) -> bool:
        """True at stage 3."""
        return self.zero_optimization_stage() >= 3

    def zero_overlap_comm(self) -> bool:
        """Whether gradients are reduced while backward goes on."""
        asked = self.config.get("zero_optimization.overlap_comm")
        return self.zero_optimization_partition_weights() if asked is None else bool(asked)

    def _offload(self) -> str:
        return str(self.config.get("zero_optimization.offload_optimizer.device", "none"))

    def zero_use_cpu_optimizer(self) -> bool:
        """Whether updates run on the host."""
        return self._offload() != "none"

    def zero_cpu_offload(self) -> bool:
        """Whether optimizer states are in host memory."""
        return self._offload() == "cpu"

    def zero_nvme_offload_optimizer(self) -> bool:
        """Whether optimizer states are in files."""
        return self._offload() == "nvme"

    def zero_partial_offload(self) -> float:
        """The part of the optimizer that is offloaded."""
        return float(self.config.get("zero_optimization.offload_optimizer.ratio", 1.0))

    def postscale_gradients(self) -> bool:
        """Whether gradients are divided after they are reduced."""
        return not self.config.training.prescale_gradients

    def dynamic_loss_scale(self) -> bool:
        """Whether the loss scale follows overflows."""
        return not self.config.get("fp16.loss_scale")

    def initial_dynamic_scale(self) -> float:
        """Where the loss scale begins; 1 without fp16."""
        return 2.0 ** self.config.get("fp16.initial_scale_power") if self.config.get("fp16.enabled") else 1.0

    def dynamic_loss_scale_args(self) -> dict[str, Any] | None:
        """How the loss scale follows overflows; None where it does not."""
        if not self.config.get("fp16.enabled") or not self.dynamic_loss_scale():
            return None
        return {
            "init_scale": self.initial_dynamic_scale(),
            "scale_window": self.config.get("fp16.loss_scale_window"),
            "delayed_shift": self.config.get("fp16.hysteresis"),
            "consecutive_hysteresis": self.config.get("fp16.consecutive_hysteresis"),
            "min_scale": self.config.get("fp16.min_loss_scale"),
        }

    def checkpoint_tag_validation_enabled(self) -> bool:
        """Whether ranks that save under different tags are told."""
        return bool(self.config.get("checkpoint.tag_validation") != "Ignore")

    def checkpoint_tag_validation_fail(self) -> bool:
        """Whether they are refused."""
        return bool(self.config.get("checkpoint.tag_validation") == "Fail")

    @property
    def communication_data_type(self) -> str | None:
        """Name of the dtype gradients travel in, or None for the gradients' own."""
        return self.config.training.communication_data_type


def _make(name: str, path: str) -> Callable[[ConfigAccessors], Any]:
    def accessor(self: ConfigAccessors) -> Any:
        return self.config.get(path, OFF.get(name, False if "enabled" in name else None))

    accessor.__doc__ = f"The config's ``{path}``; where no wheel serves it, what that amounts to."
    return accessor


def _make_fixed(name: str) -> Callable[[ConfigAccessors], Any]:
    def accessor(self: ConfigAccessors) -> Any:
        return OFF[name]

    accessor.__doc__ = f"Always {OFF[name]!r} here."
    return accessor


for _name in {**ACCESSORS, **OFF}:
    _made = _make(_name, ACCESSORS[_name]) if _name in ACCESSORS else _make_fixed(_name)
    _made.__name__ = _name
    _made.__qualname__ = f"ConfigAccessors.{_name}"
    setattr(ConfigAccessors, _name, _made)
