"""Brings one plugin in: requirements, import, handshake, registration. Whatever fails is recorded, never raised."""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from collections.abc import Callable
from types import ModuleType

import pluggy

from ds_core.errors import did_you_mean
from ds_core.hooks import HOOK_API
from ds_core.plugins.records import PluginRecord, PluginState, raised_at
from ds_core.plugins.requirements import unmet_requirement
from ds_core.plugins.scan import Candidate
from ds_core.plugins.switches import CORE_ID

__all__ = ["handshake", "load", "register"]


def load(
    candidate: Candidate,
    record: PluginRecord,
    hooks: pluggy.PluginManager,
    version_of: Callable[[str], str | None],
) -> None:
    """Imports and registers one plugin, and leaves its record in state REGISTERED, INCOMPATIBLE or IMPORT_ERROR."""
    start_s = time.perf_counter()
    try:
        if record.id != CORE_ID:
            unmet = unmet_requirement(record.wheel, candidate.requires, version_of)
            if unmet:
                record.move(PluginState.INCOMPATIBLE, unmet)
                return
        module = _import(candidate, record)
        if module is not None:
            register(module, record, hooks)
    finally:
        record.load_ms = (time.perf_counter() - start_s) * 1e3


def _import(candidate: Candidate, record: PluginRecord) -> ModuleType | None:
    if ":" in candidate.value:
        record.move(
            PluginState.INCOMPATIBLE,
            f"entry point {candidate.name} = {candidate.value} must name a module, without ':' and what follows it",
        )
        return None
    had_torch = "torch" in sys.modules
    try:
        module = importlib.import_module(candidate.value)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - recorded with its traceback; the others go on
        where = raised_at(error)
        record.move(
            PluginState.IMPORT_ERROR,
            f"failed while loading ({type(error).__name__}: {error})" + (f" at {where}" if where else ""),
            error,
        )
        return None
    record.location = module.__file__ or record.location
    if not had_torch and "torch" in sys.modules:
        record.notes.append(
            f"{candidate.value} imports torch when it is loaded; a plugin module may import the standard library and "
            "ds_core.hooks only, heavy imports belong inside its hooks"
        )
    return module


def handshake(module: ModuleType, wheel: str) -> tuple[tuple[int, int] | None, str]:
    """The plugin's hook API, and why it does not fit this ds-core (empty when it does)."""
    here = ".".join(map(str, HOOK_API))
    core = sys.modules["ds_core"].__version__
    stated = vars(module).get("DS_HOOK_API")
    if stated is None:
        return None, (
            f"{wheel} states no DS_HOOK_API; its authors must add `DS_HOOK_API = {HOOK_API}` to {module.__name__}"
        )
    if not (isinstance(stated, tuple) and len(stated) == 2 and all(type(part) is int for part in stated)):
        return None, (
            f"DS_HOOK_API in {module.__name__} must be a tuple of two integers such as {HOOK_API}, got {stated!r}"
        )
    api = (stated[0], stated[1])
    there = ".".join(map(str, api))
    dist = wheel.split(" ", 1)[0]
    if api[0] > HOOK_API[0] or (api[0] == HOOK_API[0] and api[1] > HOOK_API[1]):
        return api, (
            f"{wheel} needs hook API {there}, this is {here} (ds-core {core}). "
            f"Upgrade ds-core (pip install -U ds-core), or install an older {dist}"
        )
    if api[0] < HOOK_API[0]:
        return api, (
            f"{wheel} was written for hook API {there}, this is {here} (ds-core {core}). "
            f"Upgrade {dist} (pip install -U {dist}), or install an older ds-core"
        )
    return api, ""


def register(module: ModuleType, record: PluginRecord, hooks: pluggy.PluginManager) -> None:
    """Checks the handshake and registers the module's hooks; on any fault everything registered is taken back."""
    record.api, misfit = handshake(module, record.wheel)
    misfit = misfit or _unmarked_hooks(module, hooks)
    if misfit:
        record.move(PluginState.INCOMPATIBLE, misfit)
        return
    error: Exception | None = None
    try:
        hooks.register(module, name=record.id)
        misfit = _unknown_hooks(module, hooks)
    except (pluggy.PluginValidationError, ValueError) as caught:
        error = caught
        misfit = _bad_arguments(module, hooks) or str(caught)
    if misfit:
        if hooks.get_plugin(record.id) is module:
            hooks.unregister(module, name=record.id)
        record.move(PluginState.INCOMPATIBLE, f"{record.wheel} {misfit}", error)
        return
    record.module = module
    record.location = module.__file__ or record.location
    record.move(PluginState.REGISTERED)


def _spec_names(hooks: pluggy.PluginManager) -> list[str]:
    return sorted(name for name, caller in vars(hooks.hook).items() if caller.has_spec())


def _unmarked_hooks(module: ModuleType, hooks: pluggy.PluginManager) -> str:
    # A forgotten decorator would otherwise make the hook silently not there.
    for name in _spec_names(hooks):
        function = vars(module).get(name)
        if inspect.isfunction(function) and hooks.parse_hookimpl_opts(module, name) is None:
            return f"{module.__name__}.{name} lacks the @hookimpl decorator of ds_core.hooks"
    return ""


def _unknown_hooks(module: ModuleType, hooks: pluggy.PluginManager) -> str:
    known = _spec_names(hooks)
    for name in sorted(caller.name for caller in hooks.get_hookcallers(module) or ()):
        if name not in known:
            near = did_you_mean(name, known) or f" Known: {', '.join(known)}"
            return f"implements hook {name!r}, which ds-core does not have.{near}"
    return ""


def _bad_arguments(module: ModuleType, hooks: pluggy.PluginManager) -> str:
    for name in _spec_names(hooks):
        caller = getattr(hooks.hook, name)
        if hooks.parse_hookimpl_opts(module, name) is None:
            continue
        allowed = list(caller.spec.argnames)
        for argument in inspect.signature(vars(module)[name]).parameters.values():
            if argument.default is argument.empty and argument.name not in allowed:
                takes = ", ".join(allowed) if allowed else "none"
                return (
                    f"implements hook {name!r} with argument {argument.name!r}, which it does not have."
                    f"{did_you_mean(argument.name, allowed)} Arguments of {name}: {takes}"
                )
    return ""
