"""Consolidated fp32 weights of a checkpoint; also the command ``zero_to_fp32``."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils.zero_to_fp32": (
            "get_fp32_state_dict_from_zero_checkpoint convert_zero_checkpoint_to_fp32_state_dict "
            "load_state_dict_from_zero_checkpoint to_torch_tensor main "
            "get_checkpoint_files get_model_state_file get_model_state_files get_optim_files"
        ),
    },
    refusals={
        "parse_model_states": (
            "checkpoints here are safetensors and a manifest, not one pickled file per rank; use "
            "get_fp32_state_dict_from_zero_checkpoint, which reads both kinds"
        ),
        "parse_optim_states": (
            "checkpoints here are safetensors and a manifest, not one pickled file per rank; use "
            "get_fp32_state_dict_from_zero_checkpoint, which reads both kinds"
        ),
    },
)

if __name__ == "__main__":
    from ds_core.utils.zero_to_fp32 import main

    main()
