"""Consolidation of checkpoints under the names users of DeepSpeed import: `ds_core.checkpoint.weights.consolidate`."""

from __future__ import annotations

from ds_core.checkpoint.weights.consolidate import (
    convert_zero_checkpoint_to_fp32_state_dict,
    get_fp32_state_dict_from_zero_checkpoint,
    load_state_dict_from_zero_checkpoint,
    to_torch_tensor,
)

__all__ = [
    "convert_zero_checkpoint_to_fp32_state_dict",
    "get_fp32_state_dict_from_zero_checkpoint",
    "load_state_dict_from_zero_checkpoint",
    "to_torch_tensor",
]
