"""What Hugging Face transformers looks up here, and the names of `deepspeed.zero`."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_zero": "Init GatheredParameters register_external_parameter unregister_external_parameter",
        "ds_zero.params": "ZeroParamStatus ZeroParamType",
        "deepspeed.accelerator": "get_accelerator",
        "deepspeed.runtime.zero._constructors": (
            "zero_wrapper_for_fp_tensor_constructor _orig_torch_arange _orig_torch_empty _orig_torch_full "
            "_orig_torch_ones _orig_torch_tensor _orig_torch_zeros _orig_torch_eye _orig_torch_randn"
        ),
    },
    waiting={
        "ds-zero": "MiCS_Init",
    },
)
