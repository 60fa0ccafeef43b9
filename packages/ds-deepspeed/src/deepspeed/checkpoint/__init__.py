"""``deepspeed.checkpoint``."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "deepspeed.checkpoint.utils": "clone_tensors_for_torch_save",
    },
    waiting={
        "ds-tensor": (
            "DeepSpeedCheckpoint ZeROCheckpoint model_3d_desc get_model_3d_descriptor reshape_meg_2d_parallel "
            "merge_state partition_data SubparamShape"
        ),
    },
)
