"""Checkpoints: safetensors and JSON, committed by a rename, loadable by any number of ranks."""

from ds_core.checkpoint.load import latest_tag, load
from ds_core.checkpoint.reader import CheckpointReader
from ds_core.checkpoint.save import save, save_weights
from ds_core.checkpoint.source import Source
from ds_core.checkpoint.sources import open_source

__all__ = ["CheckpointReader", "Source", "latest_tag", "load", "open_source", "save", "save_weights"]
