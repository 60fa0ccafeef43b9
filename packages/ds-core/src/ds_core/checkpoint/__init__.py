"""Checkpoints: safetensors and JSON, committed by a rename, loadable by any number of ranks."""

from ds_core.checkpoint.load import latest_tag, load
from ds_core.checkpoint.reader import CheckpointReader
from ds_core.checkpoint.save import save, save_weights

__all__ = ["CheckpointReader", "latest_tag", "load", "save", "save_weights"]
