"""Checkpoints: safetensors and JSON, committed by a rename, loadable by any number of ranks."""

from ds_core.checkpoint.consolidate import (
    convert_zero_checkpoint_to_fp32_state_dict,
    get_fp32_state_dict_from_zero_checkpoint,
    load_state_dict_from_zero_checkpoint,
)
from ds_core.checkpoint.disk import DISK, Disk
from ds_core.checkpoint.folder import complete, latest_tag, newest
from ds_core.checkpoint.load import CustomLoad, load
from ds_core.checkpoint.policy import LoadPolicy, Rename, make_policy
from ds_core.checkpoint.reader import CheckpointReader
from ds_core.checkpoint.retention import Retention, prune
from ds_core.checkpoint.save import SaveOptions, Saver
from ds_core.checkpoint.source import Source
from ds_core.checkpoint.sources import open_source
from ds_core.checkpoint.weights import consolidated_weights, export_folder, save_weights

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
