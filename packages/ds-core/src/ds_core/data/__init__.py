"""Loading data by rank: every sample of an epoch exactly once, and an exact position to restart from."""

from ds_core.data.loader import DistributedLoader
from ds_core.data.repeating import RepeatingLoader
from ds_core.data.styles import is_iterable_style_dataset, is_map_style_dataset

__all__ = ["DistributedLoader", "RepeatingLoader", "is_iterable_style_dataset", "is_map_style_dataset"]
