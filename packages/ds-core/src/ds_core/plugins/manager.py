"""`PluginManager`: every installed plugin with its state, and the hook calls over those that are registered."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import pluggy

from ds_core import hooks as hook_specs
from ds_core.errors import DsError, PluginConflictError, PluginError, UnknownPluginError, did_you_mean, nearest
from ds_core.plugins import loader
from ds_core.plugins.records import PluginRecord, PluginState
from ds_core.plugins.requirements import installed_version
from ds_core.plugins.results import HOOK_RULES, Provided, checked_items
from ds_core.plugins.scan import Candidate, normalize, scan
from ds_core.plugins.switches import Switches, check_names, decide, matches

__all__ = ["PluginManager"]

logger = logging.getLogger(__name__)


class PluginManager:
    """Loads each plugin in isolation, remembers what became of it, and calls hooks in order of plugin id.

    Building one loads the plugins and raises nothing: faults are in `records` and `environment_errors`, and
    `raise_problems` turns those into exceptions that must be.

    Args:
        entry_points: candidates to load; None scans what is installed.
        environ: where the ``DS_PLUGINS*`` switches are read from.
        version_of: installed version of a wheel, for the check of requirements.
    """

    def __init__(
        self,
        entry_points: Iterable[Candidate] | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        version_of: Callable[[str], str | None] = installed_version,
    ) -> None:
        self.records: list[PluginRecord] = []
        self.environment_errors: list[PluginError] = []
        self.memo: dict[object, Any] = {}
        self.switches = Switches()
        self._version_of = version_of
        self._collected: dict[str, list[Provided[Any]]] = {}
        self._lock = threading.RLock()
        self._loading: str | None = None
        self._hooks = pluggy.PluginManager("ds_core")
        self._hooks.add_hookspecs(hook_specs)
        self._sources: list[tuple[Candidate, PluginRecord]] = []
        self._environ = os.environ if environ is None else environ
        self._load_all(list(scan() if entry_points is None else entry_points))

    def _load_all(self, candidates: list[Candidate]) -> None:
        candidates.sort(key=lambda c: (c.id, bool(c.hidden_by), c.location))
        try:
            self.switches = Switches.read(self._environ)
            check_names("DS_PLUGINS", self.switches.allow, candidates)
            check_names("DS_PLUGINS_DISABLE", self.switches.disable, candidates)
        except PluginError as error:
            self.environment_errors.append(error)
        self._sources = [(candidate, _record_of(candidate)) for candidate in candidates]
        self.records = [record for _, record in self._sources]
        for (candidate, record), decision in zip(self._sources, decide(candidates, self.switches), strict=True):
            if decision.state is not PluginState.DISCOVERED:
                record.move(decision.state, decision.reason)
            else:
                self._load(candidate, record)
        for record in self.records:
            if record.is_problem:
                self._warn(record)

    def _load(self, candidate: Candidate, record: PluginRecord) -> None:
        self._loading = record.id
        try:
            loader.load(candidate, record, self._hooks, self._version_of)
        finally:
            self._loading = None

    def _warn(self, record: PluginRecord) -> None:
        # Equal on all ranks of a host, so only the first says it.
        if self._environ.get("RANK", "0") == "0":
            logger.warning("%s. Details: ds plugins doctor", record.describe())

    # ---- what is known

    def problems(self) -> list[PluginRecord]:
        """Records in a state that is an error, in order of id."""
        return [record for record in self.records if record.is_problem]

    def raise_problems(self) -> None:
        """Raises what must not pass: unusable names in the environment, and in strict mode every recorded problem.

        Raises:
            UnknownPluginError: a name in ``DS_PLUGINS`` or ``DS_PLUGINS_DISABLE`` matches nothing.
            PluginError: a plugin that ``DS_PLUGINS`` names is not usable, or ``DS_PLUGINS_STRICT=1`` and one is broken.
        """
        if self.environment_errors:
            raise self.environment_errors[0]
        for name in self.switches.allow:
            asked = [r for r in self.find(name) if r.is_problem and not r.hidden_by]
            if asked:
                raise self.error_for(asked[0], "DS_PLUGINS")
        broken = self.problems()
        if self.switches.strict and broken:
            lines = "\n  ".join(record.describe() for record in broken)
            raise PluginError(
                f"DS_PLUGINS_STRICT=1 and {len(broken)} installed plugin(s) are not in order:\n  {lines}"
            ) from broken[0].exception

    def error_for(self, record: PluginRecord, asked_by: str) -> PluginError:
        """The error for a plugin that was asked for by name and cannot be used, with the stored cause chained."""
        kind = PluginConflictError if record.state is PluginState.SHADOWED else PluginError
        error = kind(f"{record.describe()}. Requested by {asked_by}. {record.remedy()}".rstrip())
        error.__cause__ = record.exception
        return error

    def find(self, name: str) -> list[PluginRecord]:
        """Records that `name` (short, dist or ``dist:name``) means."""
        return [r for r in self.records if matches(name, dist=r.dist, short=r.name)]

    def hint(self, name: str) -> str:
        """A sentence about installed but unusable plugins that `name` may mean, to append to a message; or empty."""
        text = normalize(name)
        close = [r for r in self.records if not r.is_active and (text in r.id or r.name in text.split("-"))]
        close = close or self.problems()
        return "" if not close else " Installed but not in use: " + "; ".join(r.describe() for r in close) + "."

    # ---- bringing plugins in

    def add_module(self, module: ModuleType, plugin_id: str, version: str = "0") -> PluginRecord:
        """Registers a module that no wheel announces, as tests and notebooks do; its record says what came of it."""
        dist, _, name = plugin_id.partition(":")
        candidate = Candidate(dist, version, name, module.__name__, str(module.__file__ or ""))
        record = _record_of(candidate)
        if any(other.id == record.id for other in self.records):
            raise PluginError(f"plugin {record.id} is there already; choose another id.")
        loader.register(module, record, self._hooks)
        self._sources.append((candidate, record))
        self._sources.sort(key=lambda pair: pair[1].id)
        self.records[:] = [r for _, r in self._sources]
        self._forget()
        return record

    def admit(self, plugin_id: str) -> PluginRecord | None:
        """Loads a shadowed plugin because its full id was asked for; None when the id matches none."""
        for candidate, record in self._sources:
            if record.id == plugin_id and record.state is PluginState.SHADOWED and not record.hidden_by:
                self._load(candidate, record)
                self._forget()
                return record
        return None

    def _forget(self) -> None:
        self._collected.clear()
        self.memo.clear()

    # ---- calling hooks

    def collect(self, hook: str) -> list[Provided[Any]]:
        """What every registered plugin returns from a hook without arguments, asked once per process.

        A plugin whose hook raises, or returns what the spec does not allow, is recorded as a probe error and left out.
        """
        with self._lock:
            if hook not in self._collected:
                self._collected[hook] = [p for record in self._active() for p in self._ask(hook, record)]
            return list(self._collected[hook])

    def call(self, hook: str, **arguments: Any) -> list[Provided[Any]]:
        """What every registered plugin returns from a hook with arguments, in order of plugin id.

        Raises:
            DsError: as a plugin raised it.
            PluginError: a plugin raised something else, or returned what the spec does not allow; names the wheel.
        """
        provided: list[Provided[Any]] = []
        for record in self._active():
            try:
                items = checked_items(hook, self._invoke(hook, record, arguments))
            except PluginError as error:
                raise PluginError(f"{hook} of plugin {record.id} ({record.wheel}): {error}") from error
            except DsError:
                raise
            except Exception as error:
                raise PluginError(
                    f"{hook} of plugin {record.id} ({record.wheel}) raised {type(error).__name__}: {error}"
                ) from error
            provided += [Provided(item, record) for item in items]
        return provided

    def first(self, hook: str, **arguments: Any) -> Provided[Any] | None:
        """The one answer to a hook that at most one plugin may answer.

        Raises:
            PluginConflictError: more than one plugin answers.
        """
        answers = self.call(hook, **arguments)
        if len(answers) > 1:
            raise PluginConflictError(
                f"{len(answers)} plugins answer {hook}, at most one may: {' and '.join(a.origin for a in answers)}. "
                + _disable_lines(answers)
            )
        return answers[0] if answers else None

    def by_name(self, hook: str, name: str, *, device_type: str | None = None) -> Provided[Any]:
        """The item a name means, compared without case; ``dist:name`` picks one wheel's.

        With `device_type`, items for other devices are left out; where items have a priority, the highest wins.

        Raises:
            UnknownPluginError: no plugin offers the name.
            PluginConflictError: two plugins offer it with equal right; says how to choose.
        """
        attribute = HOOK_RULES[hook].named or "name"
        wheel, colon, own = name.rpartition(":")
        offered = self.collect(hook)
        found = [
            p
            for p in offered
            if getattr(p.item, attribute).casefold() == own.casefold()
            and (not colon or normalize(wheel) == normalize(p.record.dist))
            and _serves(p.item, device_type)
        ]
        what = hook.removeprefix("ds_").rstrip("s").replace("_", " ")
        if not found:
            known = sorted({getattr(p.item, attribute) for p in offered if _serves(p.item, device_type)})
            close = nearest(own.casefold(), [each.casefold() for each in known])
            near = next((f" Did you mean {each!r}?" for each in known if each.casefold() == close), "")
            on = f" for device {device_type!r}" if device_type else ""
            raise UnknownPluginError(
                f"no installed wheel offers {what} {name!r}{on}.{near} "
                f"Known: {', '.join(known) or 'none'}.{self.hint(name)}"
            )
        best = max(getattr(p.item, "priority", 0) for p in found)
        winners = [p for p in found if getattr(p.item, "priority", 0) == best]
        if len({p.record.id for p in winners}) > 1:
            raise PluginConflictError(
                f"{len(winners)} plugins offer {what} {own!r}: {' and '.join(p.origin for p in winners)}. "
                f"Write {' or '.join(f'{normalize(p.record.dist)}:{own}' for p in winners)} instead of {own}. "
                + _disable_lines(winners)
            )
        return winners[0]

    def _active(self) -> list[PluginRecord]:
        if self._loading is not None:
            raise PluginError(
                f"plugin {self._loading} asks for other plugins while it is being loaded; move that into a hook."
            )
        return [record for record in self.records if record.module is not None]

    def _ask(self, hook: str, record: PluginRecord) -> Sequence[Provided[Any]]:
        try:
            items = checked_items(hook, self._invoke(hook, record, {}))
        except Exception as error:  # recorded with its traceback; the others go on
            text = str(error) if isinstance(error, PluginError) else f"{hook} raised {type(error).__name__}: {error}"
            record.move(PluginState.PROBE_ERROR, text, error)
            self._warn(record)
            if self.switches.strict:
                raise self.error_for(record, "DS_PLUGINS_STRICT=1") from error
            return ()
        return [Provided(item, record) for item in items]

    def _invoke(self, hook: str, record: PluginRecord, arguments: Mapping[str, Any]) -> object:
        if hook not in HOOK_RULES:
            raise PluginError(f"there is no hook {hook!r}.{did_you_mean(hook, HOOK_RULES)}")
        others = [other.module for other in self.records if other.module is not None and other is not record]
        caller = self._hooks.subset_hook_caller(hook, others)
        answers = caller(**arguments)
        return answers[0] if answers else None


def _record_of(candidate: Candidate) -> PluginRecord:
    return PluginRecord(
        id=candidate.id,
        name=candidate.name,
        dist=candidate.dist,
        version=candidate.version,
        entry_point=candidate.value,
        dist_location=candidate.location,
        location=_module_file(candidate) or candidate.location,
        duplicates=candidate.duplicates,
        hidden_by=candidate.hidden_by,
    )


def _module_file(candidate: Candidate) -> str:
    module = sys.modules.get(candidate.value)
    return "" if module is None else str(module.__file__ or "")


def _serves(item: Any, device_type: str | None) -> bool:
    devices = getattr(item, "device_types", ())
    return device_type is None or not devices or device_type in devices


def _disable_lines(provided: Sequence[Provided[Any]]) -> str:
    return "Or set " + " or ".join(f"DS_PLUGINS_DISABLE={p.record.id}" for p in provided) + ", or uninstall one."
