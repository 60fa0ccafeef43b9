"""Start ranks: what to run (`LaunchSpec`), how (`Launcher`), and what became of it. Importing this imports no torch."""

from __future__ import annotations

from ds_core.launch.base import Launcher
from ds_core.launch.local import LocalLauncher
from ds_core.launch.outcome import RankFailure, RanksFailedError
from ds_core.launch.spec import LaunchSpec

__all__ = ["LaunchSpec", "Launcher", "LocalLauncher", "RankFailure", "RanksFailedError"]
