"""The process-wide `PluginManager`: built once, at the first need, safe against threads and re-entry."""

from __future__ import annotations

import threading

from ds_core.errors import PluginError
from ds_core.plugins.manager import PluginManager

__all__ = ["discover", "loaded_manager", "manager"]


class _Process:
    """Holds the manager, and knows when it is being built."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.manager: PluginManager | None = None
        self.building = False


_process = _Process()


def discover() -> None:
    """Scans the installed wheels once and loads their light plugin modules; raises nothing, later calls do nothing.

    A plugin that imports ds_core while it is itself being loaded comes back here and finds nothing to do.
    """
    with _process.lock:
        if _process.manager is not None or _process.building:
            return
        _process.building = True
        try:
            _process.manager = PluginManager()
        finally:
            _process.building = False


def loaded_manager() -> PluginManager | None:
    """The process-wide manager if it was built already."""
    return _process.manager


def manager() -> PluginManager:
    """The process-wide manager, discovering plugins at the first call.

    Raises:
        PluginError: the environment names plugins that are not there or not usable; any plugin is broken and
            ``DS_PLUGINS_STRICT=1``; or a plugin calls this while it is being loaded.
    """
    discover()
    found = _process.manager
    if found is None:
        raise PluginError("a plugin asks for other plugins while plugins are being loaded; move that into a hook.")
    found.raise_problems()
    return found
