"""The launchers ds-core brings, as data."""

from __future__ import annotations

from ds_core.hooks import LauncherEntry

__all__ = ["ENTRIES"]

ENTRIES: tuple[LauncherEntry, ...] = (
    LauncherEntry("local", "ds_core.launch.local:LocalLauncher", "ranks on this machine, through torchrun"),
)
