"""Experts of Hugging Face models over ranks: the config alone asks for it."""

from __future__ import annotations

from deepspeed._doors import doors

_CONFIG = "put expert_parallel into the config, and initialize converts the model (pip install ds-moe)"

__getattr__, __dir__ = doors(
    __name__,
    refusals=dict.fromkeys(("AutoEP", "AutoEPMoELayer", "parse_autoep_config", "ParallelFoldingSpec"), _CONFIG),
)
