"""Imports what a plugin named as ``"package.module:attribute"``, at the moment it is first needed."""

from __future__ import annotations

import importlib
from typing import Any

from ds_core.errors import DsError, PluginError, did_you_mean
from ds_core.plugins.records import PluginRecord, raised_at

__all__ = ["load_ref"]


def load_ref(ref: str, record: PluginRecord | None = None) -> Any:
    """The object a reference names.

    Args:
        ref: ``"package.module:attribute"``; the attribute may be dotted.
        record: the plugin the reference came from, for the message; found by package name when None.

    Raises:
        PluginError: the reference is malformed, its module cannot be imported (cause chained, wheel named), or it has
            no such attribute.
    """
    module_name, colon, path = ref.partition(":")
    if not colon or not module_name or not path:
        raise PluginError(f"a reference must be 'package.module:attribute', got {ref!r}.")
    try:
        found: Any = importlib.import_module(module_name)
    except DsError:
        raise
    except Exception as error:
        where = raised_at(error)
        raise PluginError(
            f"{_owner(ref, record)} could not be loaded ({type(error).__name__}: {error})"
            + (f" at {where}." if where else ".")
        ) from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            near = did_you_mean(name, dir(found))
            raise PluginError(f"{_owner(ref, record)}: no attribute {name!r}.{near}") from error
    return found


def _owner(ref: str, record: PluginRecord | None) -> str:
    if record is None:
        from ds_core.plugins.process import loaded_manager

        manager = loaded_manager()
        top = ref.partition(":")[0].partition(".")[0]
        owners = [r for r in (manager.records if manager else ()) if r.entry_point.partition(".")[0] == top]
        record = owners[0] if owners else None
    return repr(ref) if record is None else f"{ref!r} of {record.wheel} ({record.location})"
