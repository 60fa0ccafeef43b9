"""Loads a checkpoint, of this project's format or another, into an engine of any number of ranks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_core import comm
from ds_core.checkpoint.loading.policy import LoadPolicy
from ds_core.checkpoint.loading.renamed import Renamed, names_of
from ds_core.checkpoint.native import older
from ds_core.checkpoint.plausible import check_kinds, distrusting
from ds_core.checkpoint.saving.under_way import settle
from ds_core.checkpoint.source import Source
from ds_core.checkpoint.sources import open_source, recognize
from ds_core.checkpoint.storage.client_values import decode
from ds_core.checkpoint.storage.files import LATEST
from ds_core.checkpoint.together import together
from ds_core.errors import CheckpointError
from ds_core.part import overrides
from ds_core.state import NumbersStates

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["CustomLoad", "load", "restore"]

logger = logging.getLogger(__name__)

STRICT = LoadPolicy()

CustomLoad = Callable[..., Any]
"""Called with ``src=`` (names to full tensors) and ``dst=`` (the module)."""


def load(
    engine: EngineApi,
    directory: str | Path,
    tag: str | None,
    *,
    kinds: Set[str],
    policy: LoadPolicy = STRICT,
    custom_load_fn: CustomLoad | None = None,
    verify: bool = True,
) -> tuple[str | None, dict[str, Any] | None]:
    """Restores `engine`. Called on all ranks. Nothing is changed unless everything fits on every rank.

    Args:
        engine: same model; any number of ranks, any stage.
        directory: where checkpoints were saved.
        tag: default the newest one; see `ds_core.checkpoint.storage.folder.newest`.
        kinds: kinds of state to restore (`Part.state_kind`); counters come with ``engine``.
        policy: names in the checkpoint, and what may be missing or left over.
        custom_load_fn: loads the weights instead, called with ``src=``, all of the checkpoint's in full, and ``dst=``,
            the module with its full parameters.
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
        opens = functools.partial(open_source, root, found or None, strict=policy.is_strict)
        together("open it", root / found, lambda: readers.append(opens()))
        reader = readers[0]
        client_state: list[Any] = []
        try:
            together("read it", reader.path, lambda: client_state.append(decode(reader.client_state)))
            if verify:
                together("verify it", reader.path, lambda: _verify(reader, root, found))
            restore(engine, reader, kinds=kinds, policy=policy, custom_load_fn=custom_load_fn)
        finally:
            reader.close()
        comm.barrier()
    return str(reader.path), client_state[0]


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


def restore(
    engine: EngineApi,
    source: Source,
    *,
    kinds: Set[str],
    policy: LoadPolicy,
    custom_load_fn: CustomLoad | None = None,
) -> None:
    """Checks that the parts of every rank can take their state, and then lets them. Called on all ranks.

    Raises:
        CheckpointError: on every rank; nothing was changed if it says so.
    """
    names = names_of(engine.module)
    if isinstance(source, NumbersStates) and "optimizer" in kinds:
        theirs = policy.renamed([*(alias for aliases in names.aliases.values() for alias in aliases), *names.transient])
        for groups in overrides(engine.parts, "optimizer_names"):
            source.name_parameters([[theirs[name] for name in group] for group in groups()])
    reader = Renamed(source, names, policy)
    left_out = {"module"} if custom_load_fn is not None else set()
    parts = [part for part in engine.parts if part.state_kind in (kinds | {"always"}) - left_out]

    def check() -> None:
        for part in parts:
            plan = part.state_plan()
            for name, own in plan.values.items() if plan is not None else ():
                check_kinds(own, reader.value(name), f"its value {name}")
            part.check_state(reader)

    def take() -> None:
        for part in parts:
            part.load_state(reader)

    together("take this state, and nothing was changed", source.path, distrusting(check))
    together("load its share; the engine is half loaded and must not go on", source.path, distrusting(take))
    for share in overrides(parts, "state_loaded"):
        share()
    if custom_load_fn is not None and "module" in kinds:
        run = functools.partial(custom_load_fn, dst=engine.module)
        with engine.gathered(list(engine.module.parameters())):
            together("run custom_load_fn", source.path, lambda: run(src=reader.module_state()))
    if "optimizer" not in kinds or custom_load_fn is not None:
        for follow in overrides(engine.parts, "weights_replaced"):
            follow(reader)
    if "engine" in kinds:
        engine.restore_counters({**engine.counters(), **source.counters})
