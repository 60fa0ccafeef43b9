"""``deepspeed.runtime.zero``: as `deepspeed.zero`."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_zero": (
            "Init GatheredParameters register_external_parameter unregister_external_parameter TiledLinear "
            "TiledLinearReturnBias unwrap_model_for_generation"
        ),
        "ds_zero.params": "ZeroParamStatus ZeroParamType",
        "ds_core.errors": "ZeRORuntimeException=EngineError",
    },
    waiting={
        "ds-zero": "MiCS_Init",
    },
)
