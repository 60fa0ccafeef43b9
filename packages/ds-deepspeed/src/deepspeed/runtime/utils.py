"""Helpers of training scripts."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils.norms": (
            "clip_grad_norm_ get_global_norm get_grad_norm get_weight_norm clip_tensors_by_global_norm"
        ),
        "ds_core.utils.devices": "empty_cache see_memory_usage memory_status",
        "ds_core.utils.tensors": "move_to_device copy_to_device",
        "ds_core.utils.small": "set_random_seed ensure_directory_exists call_to_str DummyOptim CheckOverflow",
        "ds_pipeline.partition": "partition_uniform partition_balanced",
    },
    waiting={
        "ds-tensor": "PartitionedTensor",
    },
    refusals={
        "register_output_backward_hooks": "the engine watches the output of its forward itself",
    },
)
