"""The command line ``ds``. Its subcommands come from plugins, and each is imported when it is run."""

from __future__ import annotations

from ds_core.cli.main import main

__all__ = ["main"]
