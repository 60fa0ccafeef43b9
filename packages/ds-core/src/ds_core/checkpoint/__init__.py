"""Checkpoints: safetensors and JSON, committed by a rename, loadable by any number of ranks."""

from ds_core.checkpoint.load import latest_tag, load
from ds_core.checkpoint.reader import CheckpointReader
from ds_core.checkpoint.save import save
from ds_core.checkpoint.source import Source
from ds_core.checkpoint.sources import open_source
from ds_core.checkpoint.weights import consolidated_weights, export_folder, save_weights

__all__ = [
    "CheckpointReader",
    "Source",
    "consolidated_weights",
    "export_folder",
    "latest_tag",
    "load",
    "open_source",
    "save",
    "save_weights",
]
