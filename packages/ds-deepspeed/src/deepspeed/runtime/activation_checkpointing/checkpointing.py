"""As `deepspeed.checkpointing`."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.recompute": (
            "configure checkpoint non_reentrant_checkpoint is_configured reset "
            "partition_activations_in_checkpoint set_num_layers get_cuda_rng_tracker=get_rng_tracker "
            "model_parallel_cuda_manual_seed=model_parallel_manual_seed model_parallel_reconfigure_tp_seed "
            "CudaRNGStatesTracker=RngTracker CheckpointFunction"
        ),
    },
)
