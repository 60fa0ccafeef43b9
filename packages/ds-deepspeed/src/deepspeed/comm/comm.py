"""As `deepspeed.comm`."""

from __future__ import annotations

from ds_core.comm import *  # noqa: F403 # this page is that page
from ds_core.comm import __all__ as __all__
