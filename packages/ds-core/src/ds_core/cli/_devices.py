"""What ``ds report`` says of each accelerator: found, usable, why not, native ops, versions, what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ds_core.errors import DsError
from ds_core.hooks import DeviceFacts, ReportRow
from ds_core.ops.registry import Implementation, implementations
from ds_core.ops.table import OPS
from ds_core.plugins import PluginManager, PluginState, load_ref
from ds_core.plugins.probing import Candidate, candidates, node_exists

__all__ = ["device_rows"]

_STATUS = {
    PluginState.SELECTED: "ok",
    PluginState.AVAILABLE: "ok",
    PluginState.UNAVAILABLE: "info",
    PluginState.PROBE_ERROR: "error",
}


def device_rows(manager: PluginManager) -> Iterator[ReportRow]:
    """A section for each accelerator that an installed wheel offers."""
    try:
        offered = candidates(manager)
    except DsError as error:
        yield ReportRow("accelerators", "probe", str(error), "error")
        return
    native = [row for row in implementations(manager) if not row.reference and row.chosen]
    for candidate in offered:
        section = f"accelerator {candidate.id}"
        yield ReportRow(section, "wheel", candidate.record.wheel)
        yield ReportRow(section, "found", _found(candidate))
        yield ReportRow(section, "usable", _usable(candidate), _STATUS[candidate.state])
        yield ReportRow(section, "native ops", _native(candidate, native))
        yield from _facts(section, candidate)


def _found(candidate: Candidate) -> str:
    nodes = [pattern for pattern in candidate.entry.device_nodes if node_exists(pattern)]
    if candidate.device_count:
        return f"yes, {candidate.device_count} device{'' if candidate.device_count == 1 else 's'}"
    if nodes:
        return f"yes, by {', '.join(nodes)}"
    return f"no: none of {', '.join(candidate.entry.device_nodes)}" if candidate.entry.device_nodes else "no"


def _usable(candidate: Candidate) -> str:
    if candidate.is_usable:
        entry = candidate.entry
        return f"yes, {candidate.state.value}, priority {entry.priority}{', floor' if entry.is_floor else ''}"
    return f"no, {candidate.state.value}: {candidate.reason}"


def _native(candidate: Candidate, native: list[Implementation]) -> str:
    mine = [row for row in native if row.provider == candidate.record.wheel]
    proofs = Counter(row.proof for row in mine)
    how = ", ".join(f"{count} {proof}" for proof, count in proofs.items() if proof != "unstated")
    return f"{len(mine)} of {len(OPS)}" + (f" ({how})" if how else "")


def _facts(section: str, candidate: Candidate) -> Iterator[ReportRow]:
    if candidate.entry.facts is None:
        return
    try:
        facts: DeviceFacts = load_ref(candidate.entry.facts)()
    except Exception as error:  # noqa: BLE001 - a report shows what is broken, and goes on
        yield ReportRow(section, "facts", f"{type(error).__name__}: {error}", "error")
        return
    if facts.built_for:
        yield ReportRow(section, "built for", facts.built_for)
    yield ReportRow(section, "driver", facts.driver)
    for name, version in facts.libraries.items():
        yield ReportRow(section, name, version)
    status = "error" if candidate.is_usable else "info"
    for m in facts.mismatches:
        text = f"built for {m.built_for}, needs {m.needs}, found {m.found}. {m.remedy}"
        yield ReportRow(section, f"mismatch: {m.what}", text, status)
    for line in facts.left_out:
        yield ReportRow(section, "left out", line)
    for line in facts.unproven:
        yield ReportRow(section, "unproven on hardware", line)
