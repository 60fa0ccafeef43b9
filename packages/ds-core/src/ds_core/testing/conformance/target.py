"""What is tested: the accelerator a name means, and the wheel it comes from. Nothing is probed to find it."""

from __future__ import annotations

from dataclasses import dataclass

from ds_core.errors import AcceleratorError, PluginConflictError, did_you_mean
from ds_core.hooks import AcceleratorEntry
from ds_core.plugins import RESERVED, PluginManager, PluginRecord
from ds_core.plugins.scan import normalize

__all__ = ["Target", "find_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """One accelerator of one wheel. `entry` is None where the plugin is too broken to offer it."""

    record: PluginRecord
    entry: AcceleratorEntry | None
    name: str

    @property
    def id(self) -> str:
        """``"wheel:name"``, which names it in any process."""
        return f"{normalize(self.record.dist)}:{self.name}"


def find_target(name: str, manager: PluginManager) -> Target:
    """The accelerator that `name` (short, or ``wheel:name``) means, usable here or not.

    Raises:
        AcceleratorError: no installed wheel brings it.
        PluginConflictError: two wheels do.
    """
    wheel, colon, short = name.rpartition(":")
    if colon:
        for record in manager.records:
            if normalize(record.dist) == normalize(wheel):
                manager.admit(record.id)
    offered = [Target(p.record, p.item, p.item.name) for p in manager.collect("ds_accelerators")]
    found = [t for t in offered if t.name == short and (not colon or normalize(t.record.dist) == normalize(wheel))]
    if not colon:
        found = [t for t in found if _owns(t)] or found
    if not found:
        found = [Target(r, None, short) for r in manager.find(name) if r.failed_at("ds_accelerators")]
    if not found and not colon:
        found = [t for t in offered if t.entry is not None and short in t.entry.impersonates]
    if not found:
        known = {t.name for t in offered} | {t.id for t in offered}
        raise AcceleratorError(
            f"accelerator {name!r} is not installed.{did_you_mean(name, known)} Installed: "
            f"{', '.join(sorted(t.id for t in offered)) or 'none'}.{manager.hint(short)} See: ds accel list"
        )
    if len(found) > 1:
        raise PluginConflictError(
            f"{len(found)} wheels offer accelerator {name!r}: "
            f"{' and '.join(t.record.wheel_at for t in found)}. Name one: {' or '.join(t.id for t in found)}."
        )
    return found[0]


def _owns(target: Target) -> bool:
    return RESERVED.get(target.name, normalize(target.record.dist)) == normalize(target.record.dist)
