"""One object for all enabled sinks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ds_core.monitors.base import Event, Monitor

if TYPE_CHECKING:
    from ds_core.hooks import MonitorEntry
    from ds_core.plugins import PluginManager, Provided

__all__ = ["MonitorMaster"]

logger = logging.getLogger(__name__)


class _Sections(Protocol):
    """A config as seen from here: sections by key."""

    def __getitem__(self, key: str, /) -> Any: ...


class MonitorMaster:
    """Writes events to every sink whose config section is enabled, on rank 0 only.

    A sink that cannot be opened was asked for and stops the start. One that fails later is disabled with one warning
    that names it, and training goes on.

    Args:
        config: sections by key, each an object with ``enabled``; a plain dict may leave sections out.
        rank: global rank of this process.
        manager: plugin manager; the process-wide one by default.
    """

    def __init__(
        self, config: _Sections | Mapping[str, Any], rank: int = 0, manager: PluginManager | None = None
    ) -> None:
        self._monitors: dict[str, Monitor] = _open(config, manager) if rank == 0 else {}

    @property
    def enabled(self) -> bool:
        """Whether there is anything to write to."""
        return bool(self._monitors)

    @property
    def monitors(self) -> Mapping[str, Monitor]:
        """The sinks that still work, by name."""
        return dict(self._monitors)

    def write_events(self, event_list: Iterable[tuple[str, Any, int]], flush: bool = True) -> None:
        """Writes ``(name, value, step)`` tuples.

        Args:
            event_list: values are numbers or tensors of one element; a tensor is read only where there is a sink.
            flush: make them readable at once.
        """
        if not self._monitors:
            return
        now = time.time()
        events = [Event(name, float(value), int(step), now) for name, value, step in event_list]
        self._each("write", lambda monitor: monitor.write(events))
        if flush:
            self.flush()

    def flush(self) -> None:
        """Flushes every sink."""
        self._each("flush", lambda monitor: monitor.flush())

    def close(self) -> None:
        """Closes every sink; later events go nowhere."""
        self._each("close", lambda monitor: monitor.close())
        self._monitors = {}

    def _each(self, verb: str, action: Callable[[Monitor], None]) -> None:
        for name, monitor in list(self._monitors.items()):
            try:
                action(monitor)
            except Exception as error:  # noqa: BLE001 - a sink of any kind may fail in any way; training must not
                del self._monitors[name]
                logger.warning(
                    "monitor %s failed in %s and is disabled: %s: %s", name, verb, type(error).__name__, error
                )


def is_asked(config: _Sections | Mapping[str, Any], manager: PluginManager | None = None) -> bool:
    """Whether any sink is enabled, on whatever rank it writes."""
    return bool(_enabled(config, manager))


def _enabled(
    config: _Sections | Mapping[str, Any], manager: PluginManager | None
) -> list[tuple[Provided[MonitorEntry], Any]]:
    """The sinks that the config enables, with their sections."""
    from ds_core.plugins import manager as installed

    found = []
    for provided in (manager or installed()).collect("ds_monitors"):
        if isinstance(config, Mapping) and provided.item.section not in config:
            continue
        section = config[provided.item.section]
        if section.enabled:
            found.append((provided, section))
    return found


def _open(config: _Sections | Mapping[str, Any], manager: PluginManager | None) -> dict[str, Monitor]:
    """The enabled sinks by name; two of one name are told apart by the plugin they come from."""
    from ds_core.plugins import load_ref

    opened: dict[str, Monitor] = {}
    for provided, section in _enabled(config, manager):
        entry = provided.item
        name = entry.name if entry.name not in opened else f"{entry.name} ({provided.record.id})"
        factory: Any = load_ref(entry.factory)
        opened[name] = factory(section)
    return opened
