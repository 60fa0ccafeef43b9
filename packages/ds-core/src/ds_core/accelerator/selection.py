"""The choice of this job's accelerator: argument, then config, then ``DS_ACCELERATOR``, then automatic."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ds_core.accelerator.automatic import automatic
from ds_core.accelerator.contract import Accelerator
from ds_core.accelerator.request import by_request
from ds_core.errors import AcceleratorError
from ds_core.plugins import PluginManager, PluginState, load_ref
from ds_core.plugins import manager as process_manager
from ds_core.plugins.probing import Candidate, node_exists

__all__ = ["Selection", "choose", "current", "in_use", "instantiate", "select"]

logger = logging.getLogger(__name__)

_IN_USE = "accelerator in use"


@dataclass(frozen=True, slots=True)
class Selection:
    """The accelerator chosen, and what decided."""

    candidate: Candidate
    asked_by: str

    @property
    def id(self) -> str:
        """``"wheel:name"``."""
        return self.candidate.id


def select(
    requested: str | None = None,
    *,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
    manager: PluginManager | None = None,
) -> Accelerator:
    """The accelerator of this job; the same object for the same choice in one process.

    Args:
        requested: name from the caller: short, or ``wheel:name``; None or ``"auto"`` leaves it to the next.
        config: name from the config key ``accelerator``.
        environ: where ``DS_ACCELERATOR`` and ``DS_ALLOW_CPU_FALLBACK`` are read from; `os.environ` when None.
        manager: the plugins to choose from; the process-wide ones when None.

    Raises:
        AcceleratorError: what was asked for is not installed, not usable here, or not the only one of its name.
        AcceleratorFallbackError: nothing was asked for and only the CPU is left, although a device seems to be there.
    """
    manager = process_manager() if manager is None else manager
    chosen = choose(requested, config=config, environ=environ, manager=manager)
    made: dict[str, Accelerator] = manager.memo.setdefault("accelerators made", {})
    if chosen.id not in made:
        made[chosen.id] = _make(chosen)
    manager.memo[_IN_USE] = made[chosen.id]
    return made[chosen.id]


def current(manager: PluginManager | None = None) -> Accelerator:
    """The accelerator this process uses: what `select` gave last, else what it gives now."""
    found = in_use(manager)
    return select(manager=manager) if found is None else found


def in_use(manager: PluginManager | None = None) -> Accelerator | None:
    """What `select` gave last in this process, None before it was called."""
    manager = process_manager() if manager is None else manager
    found: Accelerator | None = manager.memo.get(_IN_USE)
    return found


def choose(
    requested: str | None = None,
    *,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
    manager: PluginManager | None = None,
    exists: Callable[[str], bool] | None = None,
) -> Selection:
    """What `select` would take, without making it. `exists` tells whether a glob pattern of device nodes matches."""
    environ = os.environ if environ is None else environ
    manager = process_manager() if manager is None else manager
    exists = exists or node_exists
    sources = (
        (requested, "the argument accelerator="),
        (config, "the config key accelerator"),
        (environ.get("DS_ACCELERATOR"), "DS_ACCELERATOR"),
    )
    for name, asked_by in sources:
        if name is not None and name.strip() not in ("", "auto"):
            return Selection(by_request(name.strip(), asked_by, manager), asked_by)
    return Selection(automatic(environ, manager, exists), "automatic")


def instantiate(chosen: Selection) -> Accelerator:
    """The accelerator itself, made anew.

    Raises:
        AcceleratorError: its factory fails, or makes something else.
    """
    candidate = chosen.candidate
    record = candidate.record
    who = f"accelerator {candidate.entry.name!r} ({record.wheel})"
    try:
        made = load_ref(candidate.entry.factory, record)()
    except Exception as error:
        record.move(PluginState.PROBE_ERROR, f"making {candidate.entry.name} failed: {error}", error)
        raise AcceleratorError(
            f"{who} could not be made ({type(error).__name__}: {error}). Selected by {chosen.asked_by}. "
            f"Run: ds plugins why {record.id}"
        ) from error
    if not isinstance(made, Accelerator):
        raise AcceleratorError(
            f"{who}: {candidate.entry.factory} must return a ds_core.accelerator.Accelerator, "
            f"got {type(made).__name__}."
        )
    made.id = candidate.id
    return made


def _make(chosen: Selection) -> Accelerator:
    made = instantiate(chosen)
    candidate = chosen.candidate
    candidate.record.move(PluginState.SELECTED, f"{candidate.entry.name}, by {chosen.asked_by}")
    logger.info("accelerator %s, selected by %s", candidate.id, chosen.asked_by)
    return made
