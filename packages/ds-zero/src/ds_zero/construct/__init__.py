"""Construction of models without their memory, and their values one parameter at a time."""

from ds_core.checkpoint.storage.slices import SliceReader, load_safetensors
from ds_zero.construct.record import Recording

__all__ = ["Recording", "SliceReader", "load_safetensors"]
