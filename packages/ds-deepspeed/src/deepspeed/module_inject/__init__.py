"""Kernels in place of layers (they come with ds-inference) and layers of tensor parallelism (with ds-tensor)."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    waiting={
        "ds-inference": (
            "replace_transformer_layer revert_transformer_layer replace_module generic_injection "
            "quantize_transformer_layer ReplaceWithTensorSlicing GroupQuantizer DSPolicy TransformerPolicy "
            "replace_policy policy inject utils containers module_quantize"
        ),
        "ds-tensor": (
            "LinearLayer LinearAllreduce LmHeadLinearAllreduce SubParamLinearLayer SubParamLinearAllreduce "
            "TensorParallelConv2d EmbeddingLayer OPTEmbedding Normalize RMSNormalize TPLayerSpec AutoTPConfig "
            "AutoTPPresets merge_autotp_configs TPPlanConverter get_auto_tp_mode is_autotp_training_mode "
            "set_autotp_mode configure_tensor_parallel_runtime collect_autotp_universal_checkpoint_info "
            "GatherReplacedLayerParams TensorParallel_Layer AutoTP layers tp_shard auto_tp_model_utils"
        ),
    },
)
