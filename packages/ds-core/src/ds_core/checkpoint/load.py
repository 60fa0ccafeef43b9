"""Loads a checkpoint, of this project's format or another, into an engine of any number of ranks."""

from __future__ import annotations

import logging
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_core import comm
from ds_core.checkpoint.files import LATEST, check_tag
from ds_core.checkpoint.sources import open_source, recognize
from ds_core.part import overrides

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["latest_tag", "load"]

logger = logging.getLogger(__name__)


def latest_tag(directory: str | Path) -> str | None:
    """The tag ``latest`` names, or None when there is no checkpoint."""
    try:
        return check_tag((Path(directory) / LATEST).read_text().strip())
    except FileNotFoundError:
        return None


def load(
    engine: EngineApi, directory: str | Path, tag: str | None, *, kinds: Set[str], strict: bool
) -> tuple[str | None, dict[str, Any] | None]:
    """Restores `engine`. Called on all ranks.

    Args:
        engine: same model; any number of ranks, any stage.
        directory: where checkpoints were saved.
        tag: default the one ``latest`` names.
        kinds: kinds of state to restore (`Part.state_kind`); counters come with ``engine``.
        strict: every tensor of the module must be in the checkpoint.

    Returns:
        ``(path, client_state)``, or ``(None, None)`` when `tag` is None and nothing was ever saved there.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or of another model.
    """
    if tag is None and recognize(directory) is None and not (Path(directory) / LATEST).exists():
        logger.warning("no checkpoint in %s: it has no file %r; nothing was loaded", directory, LATEST)
        return None, None
    reader = open_source(directory, tag, strict=strict)
    for part in engine.parts:
        if part.state_kind in kinds:
            part.load_state(reader)
    if "optimizer" not in kinds:
        for follow in overrides(engine.parts, "weights_replaced"):
            follow()
    if "engine" in kinds:
        engine.restore_counters({**engine.counters(), **reader.counters})
    reader.close()
    comm.barrier()
    return str(reader.path), reader.client_state
