"""DeepSpeed's module paths and names, led to ds-core and its wheels. Importing it imports no torch."""

from __future__ import annotations

from deepspeed._doors import doors
from deepspeed.version import (
    __git_branch__,
    __git_hash__,
    __version__,
    __version_major__,
    __version_minor__,
    __version_patch__,
)

HAS_TRITON: bool = False
"""Kernels here are compiled ahead; none is written in Triton."""

__all__ = [
    "HAS_TRITON",
    "__git_branch__",
    "__git_hash__",
    "__version__",
    "__version_major__",
    "__version_minor__",
    "__version_patch__",
]

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.api": "initialize",
        "ds_core.comm": "init_distributed",
        "ds_core.engine": "DeepSpeedEngine=Engine",
        "ds_core.data": "DeepSpeedDataLoader=DistributedLoader",
        "ds_core.errors": "DeepSpeedConfigError=ConfigError",
        "ds_core.optimizer_handle": "DeepSpeedOptimizer=OptimizerHandle ZeROOptimizer=OptimizerHandle",
        "ds_core.utils.on_device": "OnDevice",
        "ds_core.utils.logs": "log_dist logger",
        "ds_core.schedules": "add_tuning_arguments",
        "deepspeed.arguments": "add_config_arguments",
        "deepspeed.runtime.config_object": "load_ds_config",
        "deepspeed.runtime.config": "DeepSpeedConfig ADAM_OPTIMIZER LAMB_OPTIMIZER MUON_OPTIMIZER",
        "deepspeed.runtime.engine": "DeepSpeedOptimizerCallable DeepSpeedSchedulerCallable",
        "deepspeed.runtime.compiler": "is_compile_supported",
        "deepspeed.comm": "dist=.",
        "deepspeed.accelerator": "get_accelerator",
        "ds_pipeline": "PipelineModule",
        "deepspeed.runtime.pipe.engine": "PipelineEngine",
    },
    waiting={
        "ds-inference": (
            "init_inference default_inference_config InferenceEngine DeepSpeedInferenceConfig "
            "DeepSpeedHybridEngine replace_transformer_layer revert_transformer_layer "
            "DeepSpeedTransformerLayer DeepSpeedTransformerConfig"
        ),
        "ds-tensor": "tp_model_init set_autotp_mode domino merge_tp_model_init_into_config record_tp_model_init_args",
    },
    refusals={
        "set_optimizer_flags": "the optimizer Muon of ds-core tells its parameters apart itself",
    },
)
