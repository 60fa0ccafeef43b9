"""Loads a checkpoint, of this project's format or another, into an engine of any number of ranks."""

from __future__ import annotations

import logging
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_core import comm
from ds_core.checkpoint.background import settle
from ds_core.checkpoint.files import LATEST
from ds_core.checkpoint.native import older
from ds_core.checkpoint.source import Source
from ds_core.checkpoint.sources import open_source, recognize
from ds_core.checkpoint.together import together
from ds_core.errors import CheckpointError
from ds_core.part import overrides

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["load"]

logger = logging.getLogger(__name__)


def load(
    engine: EngineApi, directory: str | Path, tag: str | None, *, kinds: Set[str], strict: bool, verify: bool = True
) -> tuple[str | None, dict[str, Any] | None]:
    """Restores `engine`. Called on all ranks.

    Args:
        engine: same model; any number of ranks, any stage.
        directory: where checkpoints were saved.
        tag: default the newest one; see `ds_core.checkpoint.folder.newest`.
        kinds: kinds of state to restore (`Part.state_kind`); counters come with ``engine``.
        strict: every tensor of the module must be in the checkpoint.
        verify: check the hashes of all bytes first; each rank checks its share.

    Returns:
        ``(path, client_state)``, or ``(None, None)`` when `tag` is None and nothing was ever saved there.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or of another model; names an older one where there is one.
    """
    root = Path(directory)
    settle(root)
    with comm.scope("checkpoint"):
        found = _choose(root, tag)
        if found is None:
            logger.warning("no checkpoint in %s: it has no file %r; nothing was loaded", directory, LATEST)
            return None, None
        readers: list[Source] = []
        together("open it", root / found, lambda: readers.append(open_source(root, found or None, strict=strict)))
        reader = readers[0]
        try:
            if verify:
                together("verify it", reader.path, lambda: _verify(reader, root, found))
            _restore(engine, reader, kinds)
        finally:
            reader.close()
        comm.barrier()
    return str(reader.path), reader.client_state


def _choose(root: Path, tag: str | None) -> str | None:
    """The first rank's choice, so that all ranks load the same; ``""`` for a folder of a format without tags."""
    answers: list[str | None] = [tag]

    def look() -> None:
        recognized = recognize(root)
        if recognized is not None:
            answers[0] = recognized.tag
        elif (root / LATEST).exists():
            open_source(root)  # says what is wrong

    if tag is None:
        together("find it", root, look if comm.get_rank() == 0 else lambda: None)
    chosen: str | None = comm.gather_json(answers[0])[0]
    return chosen


def _verify(reader: Source, root: Path, tag: str) -> None:
    try:
        reader.verify(comm.get_rank(), comm.get_world_size())
    except CheckpointError as error:
        raise CheckpointError(f"{error}{older(root, tag)}") from None


def _restore(engine: EngineApi, reader: Source, kinds: Set[str]) -> None:
    for part in engine.parts:
        if part.state_kind in kinds:
            part.load_state(reader)
    if "optimizer" not in kinds:
        for follow in overrides(engine.parts, "weights_replaced"):
            follow()
    if "engine" in kinds:
        engine.restore_counters({**engine.counters(), **reader.counters})
