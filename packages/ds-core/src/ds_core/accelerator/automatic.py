"""The accelerator taken when nobody asked for one.

Note [Automatic]
~~~~~~~~~~~~~~~~
Automatic takes the usable real device of highest priority. Two equals are an error that names both: install order never
decides. A floor (the CPU) does not compete; it is taken when no real device is installed, and refused when one is
installed but broken or its hardware is visible, unless ``DS_ALLOW_CPU_FALLBACK=1``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from ds_core.errors import AcceleratorError, AcceleratorFallbackError
from ds_core.plugins import RESERVED, PluginManager, PluginRecord, PluginState
from ds_core.plugins.probing import Candidate, candidates
from ds_core.plugins.scan import normalize
from ds_core.plugins.switches import flag

__all__ = ["automatic"]

logger = logging.getLogger(__name__)

_NODES = {
    "/dev/nvidia[0-9]*": "ds-accel-cuda",
    "/dev/kfd": "ds-accel-rocm",
    "/dev/accel/accel[0-9]*": "ds-accel-hpu",
    "/dev/davinci[0-9]*": "ds-accel-npu",
}


def automatic(environ: Mapping[str, str], manager: PluginManager, exists: Callable[[str], bool]) -> Candidate:
    """The usable real device of highest priority, else a floor where that is no accident; see Note [Automatic].

    Raises:
        AcceleratorError: two devices are equally good, or none is usable.
        AcceleratorFallbackError: only a floor is left although an accelerator is installed.
    """
    offered = candidates(manager)
    real = [c for c in offered if c.is_usable and not c.entry.is_floor and c.owns_name]
    hidden = {name for c in real for name in c.entry.impersonates}
    real = [c for c in real if c.entry.name not in hidden]
    if real:
        return _highest(real)
    _refuse_fallback(offered, environ, manager, exists)
    floors = [c for c in offered if c.is_usable and c.entry.is_floor and c.owns_name]
    if not floors:
        raise AcceleratorError(
            "no accelerator is usable, not even the host's: "
            + ("; ".join(f"{c.id}: {c.reason}" for c in offered) or "none is installed")
            + ". Run: ds plugins doctor"
        )
    return _highest(floors)


def _highest(usable: Sequence[Candidate]) -> Candidate:
    best = max(c.entry.priority for c in usable)
    winners = [c for c in usable if c.entry.priority == best]
    if len(winners) > 1:
        short = {c.id: c.entry.name for c in winners}
        unique = len(set(short.values())) == len(winners)
        names = ", ".join(
            f"{short[c.id] if unique else c.id} ({c.device_count} device{'' if c.device_count == 1 else 's'}, "
            f"{c.record.wheel_at})"
            for c in winners
        )
        lines = " or ".join(f"DS_ACCELERATOR={short[c.id] if unique else c.id}" for c in winners)
        raise AcceleratorError(f"{len(winners)} accelerators are equally usable: {names}. Set {lines}.")
    return winners[0]


def _refuse_fallback(
    offered: Sequence[Candidate], environ: Mapping[str, str], manager: PluginManager, exists: Callable[[str], bool]
) -> None:
    # See Note [Automatic].
    reasons: list[tuple[str, BaseException | None]] = []
    for c in offered:
        if c.entry.is_floor:
            continue
        nodes = [pattern for pattern in c.entry.device_nodes if exists(pattern)]
        if not c.owns_name and c.is_usable:
            reasons.append((f"{c.id} is usable but must be asked for: DS_ACCELERATOR={c.id}", None))
        elif c.state is PluginState.PROBE_ERROR:
            reasons.append((f"{c.id} ({c.record.wheel}): {c.reason}", c.error))
        elif nodes:
            reasons.append((f"{c.id} ({c.record.wheel}) is not usable although {nodes[0]} exists: {c.reason}", None))
    reasons += [(r.describe(), r.exception) for r in manager.problems() if _is_accelerator(r)]
    if not reasons:
        _suggest_wheel(offered, exists)
        return
    if flag(environ, "DS_ALLOW_CPU_FALLBACK", default=False):
        logger.warning("running on the CPU, DS_ALLOW_CPU_FALLBACK=1: %s", "; ".join(text for text, _ in reasons))
        return
    error = AcceleratorFallbackError(
        "this would run on the CPU although an accelerator is installed: "
        + "; ".join(text for text, _ in reasons)
        + ". Repair it (ds plugins doctor), or ask for the CPU with DS_ACCELERATOR=cpu, or set DS_ALLOW_CPU_FALLBACK=1."
    )
    error.__cause__ = next((cause for _, cause in reasons if cause is not None), None)
    raise error


def _suggest_wheel(offered: Sequence[Candidate], exists: Callable[[str], bool]) -> None:
    installed = {normalize(c.record.dist) for c in offered}
    for pattern, wheel in _NODES.items():
        if wheel not in installed and exists(pattern):
            logger.warning("running on the CPU although %s exists; to use the device: pip install %s", pattern, wheel)


def _is_accelerator(record: PluginRecord) -> bool:
    # Whether a plugin that offers nothing was to bring an accelerator: by its name, or by the text of its module.
    if not record.failed_at("ds_accelerators"):
        return False
    if RESERVED.get(record.name, "").startswith("ds-accel-") or normalize(record.dist).startswith("ds-accel-"):
        return True
    return record.is_active or "def ds_accelerators" in record.source_text()
