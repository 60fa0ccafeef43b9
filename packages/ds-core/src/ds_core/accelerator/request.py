"""The accelerator a name means, or the error that says why it cannot be had."""

from __future__ import annotations

from collections.abc import Sequence

from ds_core.errors import AcceleratorError, PluginConflictError, did_you_mean
from ds_core.plugins import RESERVED, PluginManager, PluginRecord, PluginState
from ds_core.plugins.probing import Candidate, candidates
from ds_core.plugins.scan import normalize

__all__ = ["by_request"]

_FIRST_PARTY = {name: dist for name, dist in RESERVED.items() if dist.startswith("ds-accel-")}


def by_request(name: str, asked_by: str, manager: PluginManager) -> Candidate:
    """The usable accelerator that `name` (short, or ``wheel:name``) means.

    Raises:
        PluginConflictError: two wheels offer the short name.
        AcceleratorError: it is not installed, broken, or not usable here.
    """
    wheel, colon, _ = name.partition(":")
    if colon:
        for record in manager.records:
            if normalize(record.dist) == normalize(wheel):
                manager.admit(record.id)
    offered = candidates(manager)
    found = [c for c in offered if _means(name, c)]
    broken = [r for r in manager.find(name) if r.failed_at("ds_accelerators")]
    if len(found) + len(broken) > 1:
        raise _conflict(name, [c.record for c in found] + broken, asked_by)
    if broken:
        raise _broken(name, broken[0], asked_by)
    if not any(c.is_usable for c in found):
        # ROCm answers to cuda, and core's reference to cpu.
        found = [c for c in offered if name in c.entry.impersonates and c.is_usable and c.owns_name] or found
    if not found:
        raise _not_there(name, asked_by, manager, offered)
    candidate = found[0]
    if len(found) > 1:
        raise _conflict(name, [c.record for c in found], asked_by)
    if not candidate.is_usable:
        raise AcceleratorError(
            f"accelerator {candidate.entry.name!r} ({candidate.record.wheel}) is installed but not usable here: "
            f"{candidate.reason or 'its probe gave no reason'}. Requested by {asked_by}."
            + (f" Run: ds plugins why {candidate.record.id}" if candidate.error else "")
        ) from candidate.error
    return candidate


def _means(name: str, candidate: Candidate) -> bool:
    wheel, colon, own = name.partition(":")
    if not colon:
        return name == candidate.entry.name and candidate.owns_name
    is_wheel = normalize(wheel) == normalize(candidate.record.dist)
    return is_wheel and own in (candidate.entry.name, candidate.record.name)


def _broken(name: str, record: PluginRecord, asked_by: str) -> AcceleratorError:
    error = AcceleratorError(
        f"accelerator {name!r} cannot be used: {record.describe()}. Requested by {asked_by}. {record.remedy()}"
    )
    error.__cause__ = record.exception
    return error


def _conflict(name: str, records: Sequence[PluginRecord], asked_by: str) -> PluginConflictError:
    records = sorted(records, key=lambda r: (r.id, r.dist_location))
    lines = " or ".join(f"DS_ACCELERATOR={normalize(r.dist)}:{name}" for r in records)
    return PluginConflictError(
        f"{len(records)} wheels offer accelerator {name!r}: {' and '.join(r.wheel_at for r in records)}. "
        f"Choose with {lines}, or uninstall one. Requested by {asked_by}."
    )


def _not_there(name: str, asked_by: str, manager: PluginManager, offered: Sequence[Candidate]) -> AcceleratorError:
    known = {c.entry.name for c in offered} | {c.id for c in offered} | set(_FIRST_PARTY)
    text = f"accelerator {name!r} is not installed."
    if name in _FIRST_PARTY:
        text += f" Run: pip install {_FIRST_PARTY[name]}."
    else:
        text += did_you_mean(name, known)
    for record in manager.find(name):
        if record.state is PluginState.BLOCKED:
            text += f" {record.wheel} would offer it, but is blocked: {record.reason}."
    strangers = {c.record.id: c.record for c in offered if c.entry.name == name and not c.owns_name}
    strangers |= {r.id: r for r in manager.records if r.name == name and not manager.find(name) and not r.is_active}
    for record in strangers.values():
        text += (
            f" {record.wheel} uses this name, which is reserved for {RESERVED.get(name, 'another wheel')}; "
            f"to use it set DS_ACCELERATOR={normalize(record.dist)}:{name}."
        )
    installed = ", ".join(c.id for c in offered) or "none"
    return AcceleratorError(f"{text} Installed: {installed}. Requested by {asked_by}. See: ds plugins list")
