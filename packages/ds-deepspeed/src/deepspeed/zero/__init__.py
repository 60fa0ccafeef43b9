"""``deepspeed.zero``: sharded construction and access to sharded parameters."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_zero": (
            "Init GatheredParameters register_external_parameter unregister_external_parameter TiledLinear "
            "TiledLinearReturnBias unwrap_model_for_generation"
        ),
        "ds_zero.params": "OffloadDeviceEnum ZeroParamStatus ZeroParamType",
        "ds_core.parts.residence": "OffloadStateTypeEnum get_state_devices",
    },
    waiting={
        "ds-zero": "MiCS_Init",
        "ds-inference": "DeepSpeedZeRoOffload DeepSpeedTensorOverride",
    },
)
