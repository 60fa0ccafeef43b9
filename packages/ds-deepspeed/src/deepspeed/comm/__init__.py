"""``deepspeed.comm``: torch.distributed's collectives by their names, counted; all of `ds_core.comm`."""

from __future__ import annotations

from ds_core.comm import *  # noqa: F403 # this page is that page
from ds_core.comm import __all__ as __all__
