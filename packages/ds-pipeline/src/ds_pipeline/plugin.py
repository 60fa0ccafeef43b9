"""What ds-pipeline brings to ds-core."""

from __future__ import annotations

from collections.abc import Iterable

from ds_core.hooks import CommandEntry, hookimpl

DS_HOOK_API = (1, 2)


@hookimpl
def ds_commands() -> Iterable[CommandEntry]:
    """``ds pipeline``."""
    return [CommandEntry("pipeline", "ds_pipeline.commands:app", "Plan pipeline schedules: bubble, memory, pictures.")]
