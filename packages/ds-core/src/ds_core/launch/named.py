"""A launcher by its name, ours or a plugin's."""

from __future__ import annotations

from ds_core.errors import LaunchError
from ds_core.launch.base import Launcher

__all__ = ["named_launcher"]


def named_launcher(name: str) -> Launcher:
    """The launcher called `name`.

    Raises:
        LaunchError: what the plugin gives is no launcher.
        PluginError: there is none; the message lists those there are.
    """
    from ds_core.plugins import load_ref, manager

    provided = manager().by_name("ds_launchers", name)
    made = load_ref(provided.item.factory, provided.record)()
    if not isinstance(made, Launcher):
        raise LaunchError(f"launcher {name!r} of {provided.origin} is a {type(made).__name__}, not a ds_core Launcher")
    return made
