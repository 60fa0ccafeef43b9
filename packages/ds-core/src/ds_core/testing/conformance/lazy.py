"""``torch`` for modules that must be listed where torch is not imported.

Note [Parent]
~~~~~~~~~~~~~
The process that lists cases and writes reports imports no torch: ``import torch`` loads the backend of every installed
vendor (entry point ``torch.backends``), and a backend that crashes must take a worker with it, never the report.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["torch"]

if TYPE_CHECKING:
    import torch as torch
else:

    class _Lazy:
        """Imports the module when something is asked of it."""

        def __init__(self, name: str) -> None:
            self._name: str = name

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._name), name)

    torch = _Lazy("torch")
