"""Checks of what hooks return: the right dataclass, well-formed names and references, each name once."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from ds_core import hooks
from ds_core.errors import PluginError
from ds_core.plugins.records import PluginRecord

__all__ = ["HOOK_RULES", "Provided", "Rule", "checked_items"]

T = TypeVar("T")

_LOWER = re.compile(r"[a-z_][a-z0-9_.-]*")
_REF = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class Provided(Generic[T]):
    """A returned item together with the plugin it came from."""

    item: T
    record: PluginRecord

    @property
    def origin(self) -> str:
        """``"ds-accel-foo 0.9 (/.../site-packages)"``, for messages."""
        return self.record.wheel_at


@dataclass(frozen=True, slots=True)
class Rule:
    """What one hook may return.

    Args:
        kind: the class every item is an instance of, or a ``"module:class"`` reference to it.
        named: attribute that holds the item's name, None when items have none.
        lower: whether that name must be lower case.
        key: what must be unique among the items of one plugin.
    """

    kind: type | str
    named: str | None = "name"
    lower: bool = True
    key: Callable[[Any], object] | None = None


def _by_device(item: Any) -> object:
    return (item.name.casefold(), tuple(sorted(item.device_types)), item.priority)


HOOK_RULES: dict[str, Rule] = {
    "ds_config_sections": Rule(hooks.ConfigSection, named="key"),
    "ds_accelerators": Rule(hooks.AcceleratorEntry),
    "ds_ops": Rule(hooks.OpImpl, named="op", key=lambda i: (i.op, i.device_type, i.priority)),
    "ds_comm_backends": Rule(hooks.CommBackendEntry),
    "ds_optimizers": Rule(hooks.OptimizerEntry, lower=False, key=_by_device),
    "ds_schedulers": Rule(hooks.SchedulerEntry, lower=False),
    "ds_mesh_axes": Rule(hooks.AxisRequest),
    "ds_transforms": Rule(hooks.TransformEntry),
    "ds_shares": Rule(hooks.Share, lower=False),
    "ds_parts": Rule("ds_core.part:Part"),
    "ds_runner": Rule("ds_core.runner:Runner", named=None),
    "ds_monitors": Rule(hooks.MonitorEntry),
    "ds_launchers": Rule(hooks.LauncherEntry),
    "ds_checkpoint_formats": Rule(hooks.CheckpointFormatEntry),
    "ds_commands": Rule(hooks.CommandEntry),
    "ds_report": Rule(hooks.ReportRow, named=None),
}


def checked_items(hook: str, returned: object) -> list[Any]:
    """The items one plugin's hook returned, validated.

    Raises:
        PluginError: not iterable, a wrong type, a bad name or reference, or a name twice. Says which item.
    """
    rule = HOOK_RULES[hook]
    if returned is None:
        return []
    if hook == "ds_runner":
        return [returned]
    if not isinstance(returned, Iterable) or isinstance(returned, (str, bytes)):
        raise PluginError(f"{hook} must return an iterable of {_kind_name(rule)}, got {type(returned).__name__}")
    items = list(returned)
    kind = _resolve(rule)
    seen: set[object] = set()
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            raise PluginError(
                f"{hook} must return {kind.__name__} items, item {index} is {type(item).__name__}: {item!r}"
            )
        if rule.named is None:
            continue
        name = getattr(item, rule.named)
        _check_name(hook, rule, index, name)
        _check_references(hook, item)
        key = rule.key(item) if rule.key is not None else name.casefold()
        if key in seen:
            raise PluginError(f"{hook} returns {name!r} twice; a plugin may return each name once")
        seen.add(key)
    return items


def _kind_name(rule: Rule) -> str:
    return rule.kind.rpartition(":")[2] if isinstance(rule.kind, str) else rule.kind.__name__


def _resolve(rule: Rule) -> type:
    if not isinstance(rule.kind, str):
        return rule.kind
    module, _, name = rule.kind.partition(":")
    kind: type = getattr(importlib.import_module(module), name)
    return kind


def _check_name(hook: str, rule: Rule, index: int, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise PluginError(f"{hook}: item {index} has {rule.named} {name!r}; it must be a non-empty string")
    if rule.lower and not _LOWER.fullmatch(name):
        raise PluginError(
            f"{hook}: {rule.named} {name!r} must be lower case letters, digits, '_', '-' or '.', "
            f"for example {name.lower().replace(' ', '_')!r}"
        )


def _check_references(hook: str, item: Any) -> None:
    # The fields of type Ref, found by annotation so that a new field is checked without a change here.
    if type(item).__module__ != hooks.__name__:
        return
    for entry in fields(item):
        value = getattr(item, entry.name)
        if entry.type in ("Ref", "Ref | None") and value is not None and not _is_reference(value):
            raise PluginError(
                f"{hook}: {entry.name} of {type(item).__name__} must be 'package.module:attribute', got {value!r}"
            )
    if isinstance(item, hooks.AcceleratorEntry) and not callable(item.is_available):
        raise PluginError(f"{hook}: is_available of accelerator {item.name!r} must be callable")
    if isinstance(item, hooks.TransformEntry) and not callable(item.apply):
        raise PluginError(f"{hook}: apply of transform {item.name!r} must be callable")


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and _REF.fullmatch(value) is not None
