"""Which implementation of an op runs on which device type: native from a wheel, or the reference."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ds_core.errors import PluginConflictError
from ds_core.ops.selftest import SWITCH, distrust, needs_selftest
from ds_core.ops.table import OPS, op

if TYPE_CHECKING:
    from ds_core.hooks import OpImpl
    from ds_core.plugins import PluginManager, Provided

__all__ = ["Implementation", "Resolved", "forget", "implementations", "resolve"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Implementation:
    """One row of ``ds ops``.

    Args:
        device_type: torch device type, or ``"any"`` for the reference.
        device: the accelerator's name where several share a device type, else the device type.
        provider: wheel and version, or ``"reference"``.
        loaded: whether this process has called it.
        chosen: whether calls on that device type go to it (when it supports them).
        proof: how it was proven, see `ds_core.hooks.Proof`; empty for the reference.
    """

    op: str
    device_type: str
    device: str
    provider: str
    priority: int
    loaded: bool
    reference: bool
    chosen: bool
    proof: str = ""


@dataclass(slots=True)
class Resolved:
    """The outcome of one lookup. Calling it runs the native kernel if it serves the arguments, else the reference."""

    name: str
    device_type: str
    native: Callable[..., Any] | None
    supports: Callable[..., str | None] | None
    reference: Callable[..., Any]
    provider: str
    reasons: set[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the op; the arguments were checked already."""
        if self.native is None:
            return self.reference(*args, **kwargs)
        if self.supports is not None:
            reason = self.supports(*args, **kwargs)
            if reason is not None:
                self._say(reason)
                return self.reference(*args, **kwargs)
        return self.native(*args, **kwargs)

    def _say(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.add(reason)
            logger.info(
                "op %s on %s runs the PyTorch reference: %s does not serve this call: %s",
                self.name,
                self.device_type,
                self.provider,
                reason,
            )


_resolved: dict[tuple[str, str], Resolved] = {}
_lock = threading.RLock()  # a kernel that is tested at its first use may meet other ops


def resolve(name: str, device_type: str) -> Resolved:
    """The implementation of op `name` for a device type, looked up once a process.

    Raises:
        OpError: there is no such op.
        PluginConflictError: two wheels bring the op for that device type with equal priority.
        PluginError: the wheel's implementation cannot be loaded.
    """
    found = _resolved.get((name, device_type))
    if found is None:
        with _lock:
            found = _resolved.get((name, device_type))
            if found is None:
                found = _resolved[(name, device_type)] = look_up(name, device_type)
    return found


def forget() -> None:
    """Looks everything up again at the next call; for tests and for plugins that were added late."""
    with _lock:
        _resolved.clear()


def look_up(name: str, device_type: str, manager: PluginManager | None = None) -> Resolved:
    """What `resolve` caches, without the cache."""
    from ds_core.plugins import load_ref

    reference = op(name).definition().reference
    offered = _served_here(_offered(manager).get((name, device_type), []), manager)
    if not offered:
        logger.info(
            "op %s on %s runs the PyTorch reference: no installed wheel brings a native one (ds ops lists them)",
            name,
            device_type,
        )
        return Resolved(name, device_type, None, None, reference, "reference", set())
    best = choose(name, device_type, offered)
    native: Any = load_ref(best.item.load)
    supports: Any = load_ref(best.item.supports) if best.item.supports is not None else None
    if needs_selftest(best.item.proof, device_type):
        reason = distrust(name, native, device_type)
        if reason is not None:
            logger.warning(
                "op %s on %s runs the PyTorch reference: the kernel of %s was never run on such a device before, and "
                "%s. Please tell its authors; %s=0 uses it all the same",
                name,
                device_type,
                best.record.wheel,
                reason,
                SWITCH,
            )
            return Resolved(name, device_type, None, None, reference, "reference", set())
    logger.info("op %s on %s runs %s from %s", name, device_type, best.item.load, best.record.wheel)
    return Resolved(name, device_type, native, supports, reference, best.record.wheel, set())


def choose(name: str, device_type: str, offered: list[Provided[OpImpl]]) -> Provided[OpImpl]:
    """The one of highest priority.

    Raises:
        PluginConflictError: two wheels share it; names both and the line that decides.
    """
    highest = max(provided.item.priority for provided in offered)
    best = [provided for provided in offered if provided.item.priority == highest]
    if len(best) > 1:
        raise PluginConflictError(
            f"op {name!r} on {device_type!r} is brought with priority {highest} by "
            f"{' and '.join(provided.origin for provided in best)}. Keep one: "
            f"{' or '.join(f'DS_PLUGINS_DISABLE={provided.record.id}' for provided in best)}, or uninstall one."
        )
    return best[0]


def implementations(manager: PluginManager | None = None) -> list[Implementation]:
    """Every implementation of every op, native ones first, without loading any and without importing torch."""
    rows = []
    by_key = _offered(manager)
    for name in OPS:
        for (offered_name, device_type), offered in sorted(by_key.items()):
            if offered_name != name:
                continue
            for provided in sorted(offered, key=lambda p: (_device(p.item), -p.item.priority, p.record.id)):
                resolved = _resolved.get((name, device_type))
                loaded = resolved is not None and resolved.provider == provided.record.wheel
                rivals = [p.item.priority for p in offered if _device(p.item) == _device(provided.item)]
                chosen = provided.item.priority == max(rivals)
                rows.append(
                    Implementation(
                        name,
                        device_type,
                        _device(provided.item),
                        provided.record.wheel,
                        provided.item.priority,
                        loaded,
                        False,
                        chosen,
                        provided.item.proof.value,
                    )
                )
        loaded = OPS[name].module in sys.modules
        rows.append(Implementation(name, "any", "any", "reference", 0, loaded, True, True))
    return rows


def _device(item: OpImpl) -> str:
    return item.accelerator or item.device_type


def _served_here(offered: list[Provided[OpImpl]], manager: PluginManager | None) -> list[Provided[OpImpl]]:
    """Those for this machine: of accelerators that share the device type, the usable one's."""
    if not any(provided.item.accelerator for provided in offered):
        return offered
    from ds_core.plugins import manager as installed
    from ds_core.plugins.probing import candidates

    usable = {candidate.entry.name for candidate in candidates(manager or installed()) if candidate.is_usable}
    return [provided for provided in offered if provided.item.accelerator in ("", *usable)]


def _offered(manager: PluginManager | None) -> Mapping[tuple[str, str], list[Provided[OpImpl]]]:
    from ds_core.plugins import manager as installed

    offered: dict[tuple[str, str], list[Provided[OpImpl]]] = {}
    for provided in (manager or installed()).collect("ds_ops"):
        if provided.item.op not in OPS:
            logger.warning(
                "%s brings op %r, which is not in the op table of this ds-core; it is ignored",
                provided.record.wheel,
                provided.item.op,
            )
            continue
        offered.setdefault((provided.item.op, provided.item.device_type), []).append(provided)
    return offered
