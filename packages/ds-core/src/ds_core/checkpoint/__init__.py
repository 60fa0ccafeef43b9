"""Checkpoints: safetensors and JSON, committed by a rename, loadable by any number of ranks.

Each name is loaded from its home when first asked for: torch.distributed.checkpoint takes half a second to import, and
an engine that saves nothing does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_core.checkpoint.loading.load import CustomLoad, load
    from ds_core.checkpoint.loading.policy import LoadPolicy, Rename, make_policy
    from ds_core.checkpoint.saving.retention import Retention, prune
    from ds_core.checkpoint.saving.saver import SaveOptions, Saver
    from ds_core.checkpoint.source import Source
    from ds_core.checkpoint.sources import open_source
    from ds_core.checkpoint.storage.disk import DISK, Disk
    from ds_core.checkpoint.storage.folder import complete, latest_tag, newest
    from ds_core.checkpoint.storage.reader import CheckpointReader
    from ds_core.checkpoint.weights.consolidate import (
        convert_zero_checkpoint_to_fp32_state_dict,
        get_fp32_state_dict_from_zero_checkpoint,
        load_state_dict_from_zero_checkpoint,
    )
    from ds_core.checkpoint.weights.engine_weights import consolidated_weights, export_folder, save_weights

__all__ = [
    "DISK",
    "CheckpointReader",
    "CustomLoad",
    "Disk",
    "LoadPolicy",
    "Rename",
    "Retention",
    "SaveOptions",
    "Saver",
    "Source",
    "complete",
    "consolidated_weights",
    "convert_zero_checkpoint_to_fp32_state_dict",
    "export_folder",
    "get_fp32_state_dict_from_zero_checkpoint",
    "latest_tag",
    "load",
    "load_state_dict_from_zero_checkpoint",
    "make_policy",
    "newest",
    "open_source",
    "prune",
    "save_weights",
]

_HOMES = {
    "CheckpointReader": "ds_core.checkpoint.storage.reader",
    "CustomLoad": "ds_core.checkpoint.loading.load",
    "DISK": "ds_core.checkpoint.storage.disk",
    "Disk": "ds_core.checkpoint.storage.disk",
    "LoadPolicy": "ds_core.checkpoint.loading.policy",
    "Rename": "ds_core.checkpoint.loading.policy",
    "Retention": "ds_core.checkpoint.saving.retention",
    "SaveOptions": "ds_core.checkpoint.saving.saver",
    "Saver": "ds_core.checkpoint.saving.saver",
    "Source": "ds_core.checkpoint.source",
    "complete": "ds_core.checkpoint.storage.folder",
    "consolidated_weights": "ds_core.checkpoint.weights.engine_weights",
    "convert_zero_checkpoint_to_fp32_state_dict": "ds_core.checkpoint.weights.consolidate",
    "export_folder": "ds_core.checkpoint.weights.engine_weights",
    "get_fp32_state_dict_from_zero_checkpoint": "ds_core.checkpoint.weights.consolidate",
    "latest_tag": "ds_core.checkpoint.storage.folder",
    "load": "ds_core.checkpoint.loading.load",
    "load_state_dict_from_zero_checkpoint": "ds_core.checkpoint.weights.consolidate",
    "make_policy": "ds_core.checkpoint.loading.policy",
    "newest": "ds_core.checkpoint.storage.folder",
    "open_source": "ds_core.checkpoint.sources",
    "prune": "ds_core.checkpoint.saving.retention",
    "save_weights": "ds_core.checkpoint.weights.engine_weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
