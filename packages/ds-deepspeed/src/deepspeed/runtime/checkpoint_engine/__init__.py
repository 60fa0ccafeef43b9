"""Engines that write checkpoints: there is one, asynchronous, chosen by ``checkpoint.asynchronous``."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    waiting={
        "ds-checkpoint": (
            "TorchCheckpointEngine FastCheckpointEngine DecoupledCheckpointEngine NebulaCheckpointEngine "
            "DataStatesCheckpointEngine"
        ),
    },
)
