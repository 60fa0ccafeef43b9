"""Every key DeepSpeed's config has: which wheel serves it, and the names inside it. Names only, no types.

A key that an installed wheel registers through ``ds_config_sections`` never reaches this page. The others get an honest
answer from it: which wheel serves the key and whether that wheel is released, or why the key is refused. The nested
names are kept so that a typo is caught even where nobody is there to serve the section.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ELSEWHERE", "ENTRIES", "OPTIMIZERS", "RELEASED", "Entry", "Tree", "leaf_keys", "names"]

RELEASED = frozenset({"ds-core", "ds-zero", "ds-pipeline", "ds-moe", "ds-accel-cpu", "ds-accel-cuda"})
"""Wheels of this version set that can be installed today."""

Tree = Mapping[str, "Tree | None"]
"""Names inside a section: None for a plain value, a tree for an object, ``*`` for any name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A top-level key that ds-core itself does not serve.

    Args:
        wheel: the wheel that serves it; empty when it is refused for good.
        keys: names inside; empty for a plain value.
        idle: plain values that ask for nothing.
        idle_when: an object asks for nothing when it holds one of these pairs.
        by_presence: an object asks for the feature even when it is empty.
        refusal: why nothing will serve it.
    """

    wheel: str = ""
    keys: Tree = field(default_factory=dict)
    idle: tuple[Any, ...] = ()
    idle_when: Mapping[str, Any] = field(default_factory=dict)
    by_presence: bool = False
    refusal: str = ""

    def is_idle(self, value: Any) -> bool:
        """Whether `value` asks for nothing, so that nobody need serve it."""
        if value is None or value == "auto":
            return not self.by_presence
        if isinstance(value, Mapping):
            if any(name in value and _same(value[name], off) for name, off in self.idle_when.items()):
                return True
            if not self.by_presence and (_all_off(value) or _all_switched_off(value)):
                return True
        return value is False or value == [] or any(_same(value, off) for off in self.idle)


def _same(value: Any, other: Any) -> bool:
    """Equal as JSON: 1e9 is 1000000000, 0 is not false; an object is also equal when it has more than `other` has."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return bool(other) and all(name in value and _same(value[name], item) for name, item in other.items())
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return bool(value == other)


def _all_off(value: Any) -> bool:
    """Whether an object holds nothing but false and null."""
    if isinstance(value, Mapping):
        return all(_all_off(item) for item in value.values())
    return value is None or value is False


def _all_switched_off(value: Mapping[str, Any]) -> bool:
    """Whether an object has switches called `enabled`, all of them off."""
    switches = list(_switches(value))
    return bool(switches) and all(switch is False for switch in switches)


def _switches(value: Mapping[str, Any]) -> Iterator[Any]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _switches(item)
        elif name == "enabled":
            yield item


def names(plain: str = "", /, **sections: Tree) -> Tree:
    """A tree from names separated by blanks, and from objects by keyword."""
    tree: dict[str, Tree | None] = dict.fromkeys(plain.split())
    tree.update(sections)
    return tree


def leaf_keys(tree: Tree, prefix: str = "") -> list[str]:
    """Every dotted key of `tree`, objects included."""
    found: list[str] = []
    for name, inner in tree.items():
        found.append(prefix + name)
        if inner:
            found += leaf_keys(inner, f"{prefix}{name}.")
    return found


_OFF = {"enabled": False}
_ANY: Tree = {"*": None}


def _group_of(params: str, plain: str = "modules related_modules") -> Tree:
    return {"*": names(plain, params=names(params))}


_PRUNING = {
    kind: names(
        shared_parameters=names("enabled method schedule_offset" + extra),
        different_groups=_group_of("dense_ratio"),
    )
    for kind, extra in {
        "sparse_pruning": " schedule_offset_end schedule_offset_stride block_pattern dense_ratio excluded_modules",
        "row_pruning": "",
        "head_pruning": " num_heads",
        "channel_pruning": "",
    }.items()
}
_MIXED = names("enabled quantize_change_ratio")
_COMPRESSION = names(
    weight_quantization=names(
        shared_parameters=names(
            "enabled quantizer_kernel schedule_offset quantize_groups quantize_verbose quantization_type rounding"
            " quantize_weight_in_forward",
            fp16_mixed_quantize=_MIXED,
        ),
        different_groups=_group_of("start_bits target_bits quantization_period"),
    ),
    activation_quantization=names(
        shared_parameters=names("enabled quantization_type range_calibration schedule_offset"),
        different_groups=_group_of("bits"),
    ),
    layer_reduction=names("enabled keep_number_layer module_name_prefix teacher_layer other_module_name"),
    **_PRUNING,
)
_SCHEDULE = names("total_curriculum_step difficulty_step root_degree difficulty max_step")
_DATA_EFFICIENCY = names(
    "enabled seed",
    data_sampling=names(
        "enabled num_epochs num_workers pin_memory",
        curriculum_learning=names(
            "enabled data_cluster_path",
            curriculum_metrics={
                "*": names(
                    "index_to_sample_path index_to_metric_path difficulty_type clustering_type min_difficulty"
                    " max_difficulty schedule_type",
                    schedule_config=_SCHEDULE,
                )
            },
        ),
        dynamic_batching=names(
            "enabled max_tokens metrics_path lr_scaling_method min_batch_size max_batch_size sequence_picking_order"
            " verbose"
        ),
    ),
    data_routing=names(
        "enabled",
        random_ltd=names(
            "enabled total_layer_num random_ltd_layer_num random_ltd_layer_id model_mask_name model_type"
            " hidden_state_order global_batch_size micro_batch_size",
            random_ltd_schedule=names(
                "min_value max_value schedule_type", schedule_config=names("require_steps seq_per_step")
            ),
            layer_token_lr_schedule=names("enabled total_layer_tokens warmup_type warmup_layer_tokens"),
        ),
    ),
)
_EIGENVALUE = names("enabled verbose max_iter tol stability gas_boundary_resolution layer_name layer_num")
_QUANTIZE_TRAINING = names(
    "enabled quantize_verbose quantizer_kernel quantize_type quantize_groups",
    quantize_bits=names("start_bits target_bits"),
    quantize_schedule=names("quantize_period schedule_offset"),
    fp16_mixed_quantize=_MIXED,
    quantize_algo=names("q_type rounding"),
    eigenvalue=_EIGENVALUE,
)
_ZERO_STAGE3 = (
    "prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters"
    " max_reuse_distance gather_16bit_weights_on_model_save module_granularity_threshold"
    " use_all_reduce_for_fetch_params allgather_sequential"
)
_ZERO = names(
    "stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce"
    " allgather_partitions allgather_bucket_size overlap_comm load_from_fp32_weights elastic_checkpoint sub_group_size"
    " ignore_unused_parameters round_robin_gradients legacy_stage1 memory_efficient_linear"
    " pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings enable_sanity_checks"
    " save_muon_momentum_buffer_in_memory zero_hpz_partition_size zero_quantized_weights"
    " zero_quantized_nontrainable_weights zero_quantized_gradients mics_shard_size"
    " mics_hierarchical_params_gather cpu_offload cpu_offload_param cpu_offload_use_pin_memory allgather_size"
    " stage3_gather_fp16_weights_on_model_save compute_grad_norm parameter_alignment "
    + _ZERO_STAGE3
    + "".join(f" stage3_{name}" for name in _ZERO_STAGE3.split()),
    zeropp_loco_param=names("err_beta reset_T"),
    leaf_module=names("classes names name_suffixes"),
    offload_param=names("device nvme_path buffer_count buffer_size max_in_cpu pin_memory"),
    offload_optimizer=names(
        "device nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio super_offload"
        " cpuadam_cores_perc"
    ),
    zenflow=names(
        "topk_ratio select_strategy select_interval update_interval overlap_step offload auto_ratio"
        " full_warm_up_rounds pt_reserved_cores_perc steps_per_epoch"
    ),
)
_TENSOR_PARALLEL = names(
    "autotp_size dtype tp_overlap_comm injection_policy_tuple preset_model keep_module_on_host"
    " replace_with_kernel_inject kernel_inject",
    tensor_parallel=names("tp_size tp_grain_size mpu tp_group"),
    tp=names("tp_size tp_grain_size mpu tp_group"),
    partition_config=names(
        "use_default_specs layer_specs embedding_partition_dim lm_head_patterns strict_mode tp_size"
    ),
)
_EXPERT_PARALLEL = names(
    "enabled autoep_size expert_tensor_parallel_size validate_folding_routing preset_model moe_layer_pattern"
    " expert_pattern router_pattern expert_w1 expert_w2 expert_w3 num_experts_attr top_k_attr has_shared_experts"
    " shared_experts_pattern shared_experts_gate_pattern use_grouped_mm disable_triton_grouped_mm route_norm"
    " route_scale routed_scaling_factor score_func score_apply combine_impl top_k num_expert_groups"
    " num_limited_groups load_balance_coeff comm_backend comm_num_sm comm_qp_margin comm_max_tokens_per_rank"
    " async_split_plan row_weighting_impl gate_up_impl fused_weighted_sum expert_activation"
)
_AUTOTUNING = names(
    "enabled fast results_dir exps_dir overwrite start_profile_step end_profile_step metric metric_path tuner_type"
    " tuner_early_stopping tuner_num_trials arg_mappings model_info_path mp_size max_train_batch_size"
    " min_train_batch_size max_train_micro_batch_size_per_gpu min_train_micro_batch_size_per_gpu"
    " num_tuning_micro_batch_sizes",
    model_info=names("profile num_params hidden_size num_layers"),
)
_COMPILE = names(
    "deepcompile passes free_activation free_activation_threshold offload_activation offload_activation_pin_memory"
    " offload_opt_states offload_parameters double_buffer symmetric_memory sync_before_reduce sync_after_reduce"
    " sync_before_allgather sync_after_allgather keep_int_input_tensors keep_all_input_tensors debug_log"
    " autoep_non_moe"
)
_SPARSE_ATTENTION = names(
    "mode block different_layout_per_head num_local_blocks num_global_blocks attention horizontal_global_attention"
    " num_different_global_patterns num_random_blocks local_window_blocks global_block_indices"
    " global_block_end_indices num_sliding_window_blocks"
)
_COMET = names("enabled samples_log_interval project workspace api_key experiment_name experiment_key online mode")

ENTRIES: Mapping[str, Entry] = {
    "zero_optimization": Entry("ds-zero", _ZERO, idle=(False,), idle_when={"stage": 0}),
    "activation_checkpointing": Entry(
        "ds-recompute",
        names(
            "partition_activations cpu_checkpointing contiguous_memory_optimization number_checkpoints"
            " synchronize_checkpoint_boundary profile"
        ),
    ),
    "flops_profiler": Entry(
        "ds-profile",
        names("enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file"),
        idle_when=_OFF,
    ),
    "wandb": Entry("ds-monitors", names("enabled group team project"), idle_when=_OFF),
    "csv_monitor": Entry("ds-monitors", names("enabled output_path job_name"), idle_when=_OFF),
    "comet": Entry("ds-monitors", _COMET, idle_when=_OFF),
    "elasticity": Entry(
        "ds-elastic",
        names(
            "enabled max_train_batch_size micro_batch_sizes min_gpus max_gpus min_time prefer_larger_batch"
            " prefer_large_batch ignore_non_elastic_batch_info version model_parallel_size num_gpus_per_node"
        ),
        idle_when=_OFF,
    ),
    "autotuning": Entry("ds-tune", _AUTOTUNING, idle_when=_OFF),
    "data_efficiency": Entry("ds-data", _DATA_EFFICIENCY, idle_when=_OFF),
    "curriculum_learning": Entry(
        "ds-data",
        names("enabled curriculum_type min_difficulty max_difficulty schedule_type", schedule_config=_SCHEDULE),
        idle_when=_OFF,
    ),
    "progressive_layer_drop": Entry("ds-data", names("enabled theta gamma"), idle_when=_OFF),
    "eigenvalue": Entry("ds-compression", _EIGENVALUE, idle_when=_OFF),
    "quantize_training": Entry("ds-compression", _QUANTIZE_TRAINING, idle_when=_OFF),
    "compression_training": Entry("ds-compression", _COMPRESSION),
    "nebula": Entry(
        "ds-checkpoint",
        names(
            "enabled enable_nebula_load nebula_load_path persistent_storage_path persistent_time_interval"
            " num_of_version_in_retention"
        ),
        idle_when=_OFF,
    ),
    "datastates_ckpt": Entry("ds-checkpoint", {"host_cache_size": None, **_ANY}, by_presence=True),
    "compile": Entry("ds-compile", _COMPILE, idle_when={"deepcompile": False}),
    "tensor_parallel": Entry("ds-tensor", _TENSOR_PARALLEL, idle_when={"autotp_size": 0}),
    "expert_parallel": Entry("ds-moe", _EXPERT_PARALLEL, idle_when=_OFF),
    "use_data_before_expert_parallelism": Entry("ds-moe", idle=(False,)),
    "hybrid_engine": Entry(
        "ds-inference",
        names(
            "enabled max_out_tokens inference_tp_size release_inference_cache pin_parameters tp_gather_partition_size"
            " enable_cuda_graph"
        ),
        idle_when=_OFF,
    ),
    "pipeline": Entry(
        "ds-pipeline",
        names("stages partition seed_layers activation_checkpoint_interval pipe_partitioned grad_partitioned"),
    ),
    "sparse_attention": Entry("ds-sequence", _SPARSE_ATTENTION),
    "sequence_parallel_size": Entry("ds-sequence", idle=(1,)),
    "seq_parallel_communication_data_type": Entry("ds-sequence", idle=("fp32", "float32")),
    "weight_quantization": Entry(
        "ds-inference",
        names(
            quantized_initialization=names("num_bits group_size group_dim symmetric"),
            post_init_quant={"*": names("num_bits group_size group_dim symmetric")},
        ),
    ),
    "amp": Entry(
        keys={"enabled": None, "opt_level": None, **_ANY},
        idle_when=_OFF,
        refusal="NVIDIA Apex is no longer maintained; set bf16.enabled, fp16.enabled or torch_autocast.enabled",
    ),
}
"""Top-level keys of the training config that are not ds-core's own."""

_QUANT = names("enabled num_bits q_type q_groups")
_INFERENCE = names(
    "replace_with_kernel_inject kernel_inject dtype enable_cuda_graph use_triton triton_autotune zero"
    " triangular_masking tm keep_module_on_host checkpoint base_dir set_empty_params save_mp_checkpoint_path"
    " return_tuple training_mp_size injection_policy injection_dict injection_policy_tuple config args"
    " max_out_tokens max_tokens min_out_tokens min_tokens transposed_mode replace_method mp_size mpu ep_size ep_group"
    " ep_mp_group moe_experts moe_type",
    tensor_parallel=names("enabled tp_size tp_grain_size mpu tp_group"),
    tp=names("enabled tp_size tp_grain_size mpu tp_group"),
    moe=names("enabled ep_size moe_experts num_experts type ep_mp_group expert_mp_group ep_group expert_group"),
    quant=names(
        "enabled qkv",
        activation=_QUANT,
        weight=names("enabled num_bits q_type q_groups quantized_initialization post_init_quant"),
    ),
    checkpoint_config=names("checkpoint_dir save_mp_checkpoint_path base_dir"),
    ckpt_config=names("checkpoint_dir save_mp_checkpoint_path base_dir"),
)
_MANAGER = names(
    "max_tracked_sequences max_ragged_batch_size max_ragged_sequence_count max_context offload",
    memory_config=names("mode size"),
)
_RAGGED = names(
    tensor_parallel=names("tp_size"),
    tp=names("tp_size"),
    state_manager=_MANAGER,
    manager=_MANAGER,
    quantization=names("quantization_mode"),
    KVCacheConfig=names(
        "type block_size num_allocation_groups cache_shape cache_dtype max_blocks_per_allocation_group"
    ),
)
_MII_MODEL = names(
    "model_name_or_path tokenizer task tensor_parallel quantization_mode inference_engine_config torch_dist_port"
    " zmq_port_number replica_num device_map max_length sync_debug profile_model_time",
    replica_configs=names("hostname tensor_parallel_ports torch_dist_port gpu_indices zmq_port"),
)
_MII = names(
    "deployment_name deployment_type model_config port_number enable_restful_api restful_api_host restful_api_port"
    " restful_processes hostfile version instance_type"
)
_MII_GENERATE = names(
    "prompt_length max_length max_new_tokens min_new_tokens stream ignore_eos return_full_text do_sample top_p top_k"
    " temperature stop"
)
_MII_LEGACY = names(
    "model task dtype model_path load_with_sys_mem meta_tensor deploy_rank torch_dist_port replica_num"
    " replica_configs profile_model_time skip_model_check hf_auth_token trust_remote_code pipeline_kwargs"
    " enable_deepspeed enable_zero ds_config tensor_parallel enable_cuda_graph replace_with_kernel_inject"
    " checkpoint_dict max_tokens"
)

ELSEWHERE: Mapping[str, tuple[str, str, Tree]] = {
    "inference": ("ds-inference", "init_inference", _INFERENCE),
    "ragged": ("ds-inference", "RaggedInferenceEngineConfig", _RAGGED),
    "mii_model": ("ds-inference", "MII's ModelConfig", _MII_MODEL),
    "mii": ("ds-inference", "MIIConfig", _MII),
    "mii_generate": ("ds-inference", "GenerateParamsConfig", _MII_GENERATE),
    "mii_legacy": ("ds-inference", "MII's legacy ModelConfig", _MII_LEGACY),
}
"""Keys of configs other than the training config: wheel, the config's name for messages, names."""

_ADAM = "lr betas eps weight_decay"
_MUP = names("lr betas eps weight_decay momentum")
OPTIMIZERS: Mapping[str, tuple[str, Tree]] = {
    "Adam": ("ds-core", names(f"{_ADAM} torch_adam adam_w_mode fp32_optimizer_states bias_correction amsgrad")),
    "AdamW": ("ds-core", names(f"{_ADAM} torch_adam adam_w_mode fp32_optimizer_states bias_correction amsgrad")),
    "Adagrad": ("ds-core", names("lr eps weight_decay")),
    "Lamb": ("ds-core", names(f"{_ADAM} max_coeff min_coeff")),
    "Lion": ("ds-core", names("lr betas weight_decay")),
    "Muon": ("ds-core", names(f"{_ADAM} momentum muon_lr adam_lr ns_method")),
    "OneBitAdam": ("ds-onebit", names(f"{_ADAM} freeze_step cuda_aware comm_backend_name")),
    "ZeroOneAdam": (
        "ds-onebit",
        names(
            f"{_ADAM} var_freeze_step var_update_scaler local_step_scaler local_step_clipper cuda_aware"
            " comm_backend_name"
        ),
    ),
    "OneBitLamb": (
        "ds-onebit",
        names(
            f"{_ADAM} max_coeff min_coeff coeff_beta factor_max factor_min factor_threshold freeze_step cuda_aware"
            " comm_backend_name"
        ),
    ),
    "MuAdam": ("ds-mup", _MUP),
    "MuAdamW": ("ds-mup", _MUP),
    "MuSGD": ("ds-mup", _MUP),
}
"""Optimizer types that DeepSpeed names: wheel, names of their own parameters."""
