"""Every accelerator the registered plugins offer, each probed once and in isolation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_core.errors import PluginError
from ds_core.hooks import AcceleratorEntry, Availability
from ds_core.plugins import RESERVED, PluginManager, PluginRecord, PluginState
from ds_core.plugins.scan import normalize

__all__ = ["Candidate", "candidates", "node_exists"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One accelerator a registered plugin offers, and the answer of its probe."""

    entry: AcceleratorEntry
    record: PluginRecord
    state: PluginState
    reason: str
    device_count: int = 0
    error: BaseException | None = None

    @property
    def id(self) -> str:
        """``"wheel:name"``."""
        return f"{normalize(self.record.dist)}:{self.entry.name}"

    @property
    def is_usable(self) -> bool:
        """Whether its probe said yes."""
        return self.state is PluginState.AVAILABLE

    @property
    def owns_name(self) -> bool:
        """False for a wheel that uses a name reserved for another; it is chosen by full id only."""
        return RESERVED.get(self.entry.name, normalize(self.record.dist)) == normalize(self.record.dist)


def candidates(manager: PluginManager) -> list[Candidate]:
    """Every accelerator the registered plugins offer, probed once per process, in order of id."""
    known: list[Candidate] | None = manager.memo.get("accelerator candidates")
    if known is None:
        known = [_probe(p.item, p.record) for p in manager.collect("ds_accelerators")]
        known.sort(key=lambda c: c.id)
        manager.memo["accelerator candidates"] = known
        for record in {id(c.record): c.record for c in known}.values():
            _settle(record, [c for c in known if c.record is record], strict=manager.switches.strict)
    return known


def node_exists(pattern: str) -> bool:
    """Whether the machine has a device node of this pattern, for example ``"/dev/nvidia[0-9]*"``."""
    return any(Path("/").glob(pattern.lstrip("/")))


def _probe(entry: AcceleratorEntry, record: PluginRecord) -> Candidate:
    try:
        answer: object = entry.is_available()
    except Exception as error:  # noqa: BLE001 - recorded; raised when this accelerator is needed
        return Candidate(
            entry, record, PluginState.PROBE_ERROR, f"the probe raised {type(error).__name__}: {error}", 0, error
        )
    if not isinstance(answer, Availability):
        reason = f"the probe must return ds_core.hooks.Availability, got {answer!r}"
        return Candidate(entry, record, PluginState.PROBE_ERROR, reason)
    state = PluginState.AVAILABLE if answer.usable else PluginState.UNAVAILABLE
    return Candidate(entry, record, state, answer.reason, answer.device_count)


def _settle(record: PluginRecord, found: Sequence[Candidate], *, strict: bool) -> None:
    # A plugin with several accelerators is as good as the best of them.
    order = (PluginState.AVAILABLE, PluginState.PROBE_ERROR, PluginState.UNAVAILABLE)
    best = min(found, key=lambda c: order.index(c.state))
    reason = "; ".join(f"{c.entry.name}: {c.reason or c.state.value}" for c in found)
    record.move(best.state, reason, best.error)
    if best.state is PluginState.PROBE_ERROR:
        logger.warning("%s. Details: ds plugins doctor", record.describe())
        if strict:
            raise PluginError(f"DS_PLUGINS_STRICT=1 and {record.describe()}. {record.remedy()}") from best.error
