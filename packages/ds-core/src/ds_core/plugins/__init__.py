"""Discovery of plugin wheels: who is installed, in which state, and what their hooks return.

Environment:
    DS_PLUGINS: comma-separated allow-list of plugins (short name, wheel, or ``wheel:name``).
    DS_PLUGINS_DISABLE: plugins that are not loaded.
    DS_PLUGINS_AUTOLOAD: 0 loads only what DS_PLUGINS names.
    DS_PLUGINS_STRICT: 1 raises on every recorded problem.
"""

from __future__ import annotations

from ds_core.plugins.manager import PluginManager
from ds_core.plugins.process import discover, loaded_manager, manager
from ds_core.plugins.records import PluginRecord, PluginState, Transition
from ds_core.plugins.refs import load_ref
from ds_core.plugins.results import Provided
from ds_core.plugins.scan import Candidate
from ds_core.plugins.switches import RESERVED

__all__ = [
    "RESERVED",
    "Candidate",
    "PluginManager",
    "PluginRecord",
    "PluginState",
    "Provided",
    "Transition",
    "discover",
    "load_ref",
    "loaded_manager",
    "manager",
]
