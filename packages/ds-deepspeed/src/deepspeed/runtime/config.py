"""The configuration."""

from __future__ import annotations

from deepspeed._doors import doors

ADAM_OPTIMIZER = "adam"
ADAMW_OPTIMIZER = "adamw"
ADAGRAD_OPTIMIZER = "adagrad"
LAMB_OPTIMIZER = "lamb"
LION_OPTIMIZER = "lion"
MUON_OPTIMIZER = "muon"
ONEBIT_ADAM_OPTIMIZER = "onebitadam"
ONEBIT_LAMB_OPTIMIZER = "onebitlamb"
ZERO_ONE_ADAM_OPTIMIZER = "zerooneadam"

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.errors": "DeepSpeedConfigError=ConfigError",
        "deepspeed.runtime.config_object": "DeepSpeedConfig",
    },
)
