"""The core of a deep-learning stack made of plugin wheels. Importing it imports neither torch nor any device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ds_core.api import add_config_arguments, include_dir, initialize
from ds_core.errors import DsError
from ds_core.hooks import HOOK_API, hookimpl

if TYPE_CHECKING:
    from ds_core.comm import init_distributed
    from ds_core.config import Config
    from ds_core.data import DistributedLoader, RepeatingLoader
    from ds_core.engine import Engine
    from ds_core.part import Part

__version__ = "0.1.0"

__all__ = [
    "HOOK_API",
    "Config",
    "DistributedLoader",
    "DsError",
    "Engine",
    "Part",
    "RepeatingLoader",
    "__version__",
    "add_config_arguments",
    "hookimpl",
    "include_dir",
    "init_distributed",
    "initialize",
]

_LATER = {
    "Config": "ds_core.config",
    "DistributedLoader": "ds_core.data",
    "Engine": "ds_core.engine",
    "Part": "ds_core.part",
    "RepeatingLoader": "ds_core.data",
    "init_distributed": "ds_core.comm",
}
"""Public names whose modules import torch or pydantic; loaded when first asked for."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
