"""What is known of each plugin: its state, how it came there, and what went wrong."""

from __future__ import annotations

import enum
import importlib
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["PluginRecord", "PluginState", "Transition", "raised_at"]


class PluginState(enum.Enum):
    """Where a plugin stands. Every installed entry point has exactly one, and none is ever dropped."""

    DISCOVERED = "discovered"
    BLOCKED = "blocked"
    INCOMPATIBLE = "incompatible"
    SHADOWED = "shadowed"
    IMPORT_ERROR = "import error"
    REGISTERED = "registered"
    PROBE_ERROR = "probe error"
    UNAVAILABLE = "unavailable"
    AVAILABLE = "available"
    SELECTED = "selected"


_PROBLEMS = frozenset(
    {PluginState.INCOMPATIBLE, PluginState.SHADOWED, PluginState.IMPORT_ERROR, PluginState.PROBE_ERROR}
)
_ACTIVE = frozenset(
    {
        PluginState.REGISTERED,
        PluginState.PROBE_ERROR,
        PluginState.UNAVAILABLE,
        PluginState.AVAILABLE,
        PluginState.SELECTED,
    }
)


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of a plugin's history: the state it entered, why, and how long after discovery began."""

    state: PluginState
    reason: str
    at_ms: float


@dataclass(slots=True)
class PluginRecord:
    """One entry point of group ``ds_core.plugins`` and everything that happened to it.

    Attributes:
        id: ``"dist:name"``, the plugin's identity.
        dist: name of the wheel as it spells itself.
        entry_point: module the entry point names.
        dist_location: directory the wheel's metadata was found in.
        location: file of the loaded module, or the best guess before it is loaded.
        duplicates: other directories on ``sys.path`` that hold the same version of the wheel.
        hidden_by: where the other version of the same wheel is that is used instead.
        api: the plugin's ``DS_HOOK_API`` once it is known.
        load_ms: time the import and the registration took.
        notes: remarks that are no errors, shown by ``ds plugins doctor``.
        faults: what its hooks or probes did wrong; they stay, whatever states come after.
    """

    id: str
    name: str
    dist: str
    version: str
    entry_point: str
    dist_location: str
    location: str
    duplicates: tuple[str, ...] = ()
    hidden_by: str = ""
    state: PluginState = PluginState.DISCOVERED
    reason: str = ""
    exception: BaseException | None = None
    traceback: str = ""
    load_ms: float = 0.0
    api: tuple[int, int] | None = None
    module: ModuleType | None = None
    history: list[Transition] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if not self.history:
            self.history.append(Transition(self.state, self.reason, 0.0))

    @property
    def is_problem(self) -> bool:
        """True when something is wrong with it: strict mode raises on these, `doctor` lists them."""
        return self.state in _PROBLEMS or bool(self.faults)

    @property
    def is_active(self) -> bool:
        """True when its hooks take part."""
        return self.state in _ACTIVE

    def failed_at(self, hook: str) -> bool:
        """True when it can offer nothing through `hook` because it was not loaded, or because that hook failed."""
        if self.is_active:
            return any(fault.startswith(hook) for fault in self.faults)
        return self.is_problem and not self.hidden_by

    @property
    def wheel(self) -> str:
        """``"ds-accel-foo 0.9"``, for messages."""
        return f"{self.dist} {self.version}"

    @property
    def wheel_at(self) -> str:
        """``"ds-accel-foo 0.9 (/.../site-packages)"``, for messages about conflicts."""
        return f"{self.wheel} ({self.dist_location})"

    def move(self, state: PluginState, reason: str = "", exception: BaseException | None = None) -> None:
        """Enters `state` and remembers why; with an exception, its traceback text is kept as well."""
        self.state = state
        self.reason = reason
        if state is PluginState.PROBE_ERROR:
            self.faults.append(reason)
        if exception is not None:
            self.exception = exception
            self.traceback = "".join(
                traceback.format_exception(type(exception), exception, exception.__traceback__)
            ).rstrip()
        self.history.append(Transition(state, reason, (time.perf_counter() - self.started_s) * 1e3))

    def describe(self) -> str:
        """One line: what, in which state, why."""
        told = f"plugin {self.id} ({self.wheel}): {self.state.value}" + (f": {self.reason}" if self.reason else "")
        earlier = [fault for fault in self.faults if fault != self.reason]
        return told + "".join(f"; {fault}" for fault in earlier)

    def remedy(self) -> str:
        """What the user can do about a problem; empty when there is none."""
        if self.dist == "ds-core" and self.is_problem:
            return f"Reinstall ds-core: pip install --force-reinstall ds-core. Traceback: ds plugins why {self.id}"
        switch = f"set DS_PLUGINS_DISABLE={self.id}"
        if self.state is PluginState.IMPORT_ERROR:
            return f"Reinstall or uninstall {self.dist}, or {switch}. Traceback: ds plugins why {self.id}"
        if self.faults:
            return f"Report it to the authors of {self.dist}, or {switch}. Traceback: ds plugins why {self.id}"
        if self.state is PluginState.INCOMPATIBLE:
            return f"Do as the reason says, uninstall {self.dist}, or {switch}."
        return "Do as the reason says." if self.state is PluginState.SHADOWED else ""

    def source_text(self) -> str:
        """Text of the plugin's module without importing it; empty when its file cannot be found."""
        parts = self.entry_point.split(".")
        bases = [Path(self.dist_location).joinpath(*parts)]
        parent = sys.modules.get(".".join(parts[:-1]))
        bases += [Path(folder) / parts[-1] for folder in getattr(parent, "__path__", ())]
        for path in [Path(self.location)] + [c for b in bases for c in (b.with_suffix(".py"), b / "__init__.py")]:
            if path.suffix == ".py" and path.is_file():
                return path.read_text(encoding="utf-8", errors="replace")
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {
            "id": self.id,
            "name": self.name,
            "dist": self.dist,
            "version": self.version,
            "entry_point": self.entry_point,
            "dist_location": self.dist_location,
            "location": self.location,
            "duplicates": list(self.duplicates),
            "state": self.state.value,
            "reason": self.reason,
            "exception": None if self.exception is None else f"{type(self.exception).__name__}: {self.exception}",
            "traceback": self.traceback,
            "load_ms": round(self.load_ms, 3),
            "api": None if self.api is None else ".".join(map(str, self.api)),
            "problem": self.is_problem,
            "remedy": self.remedy(),
            "notes": list(self.notes),
            "faults": list(self.faults),
            "history": [
                {"state": step.state.value, "reason": step.reason, "at_ms": round(step.at_ms, 3)}
                for step in self.history
            ],
        }


def raised_at(error: BaseException) -> str:
    """``"path.py:14"`` of the innermost frame outside the standard library and this package, or an empty string."""
    skipped = (str(Path(__file__).parent), str(Path(importlib.__file__).parents[1]))
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        theirs = "site-packages" in frame.filename or not frame.filename.startswith(skipped)
        if theirs and not frame.filename.startswith((skipped[0], "<")):
            found = f"{frame.filename}:{frame.lineno}"
    return found
