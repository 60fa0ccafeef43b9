"""Checking what is written in one section against its model: names, forwarding, open values. No types yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ds_core.config.catalog import Entry
from ds_core.config.facts import Origin
from ds_core.config.problems import Problem, dotted, show, unknown_key
from ds_core.config.registry import tree_problems
from ds_core.config.section import Moved, Refused, Section
from ds_core.config.shape import shape_of, takes_auto

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["Findings", "is_open", "refusal", "walk", "written_origin"]


class Findings:
    """What reading a config found out, collected while walking."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.written: dict[str, Any] = {}
        self.open: dict[str, str] = {}
        """Dotted keys left open, each as it was written: ``"auto"`` or ``null``."""
        self.idle: dict[str, Any] = {}
        """Keys that nobody serves and that ask for nothing."""
        self.moved: dict[str, str] = {}
        """Dotted new key to the dotted old key it was written as."""

    def origin_key(self, key: str) -> str:
        """The spelling of `key` in the file."""
        return self.moved.get(key, key)


def is_open(value: Any) -> bool:
    """Whether a written value leaves the choice to `resolve`."""
    return value is None or value == "auto"


def walk(model: type[Section], value: Any, prefix: str, found: Findings) -> dict[str, Any]:
    """The keys of one section under their present names, without open and refused ones; findings go to `found`."""
    if prefix:
        found.written[prefix] = value
    if is_open(value):
        found.open[prefix] = show(value).strip('"')
        return {}
    for old, new in model.legacy_values:
        if type(old) is type(value) and old == value:
            found.notes.append(f"{prefix}: {show(value)} is an old form, read as {show(new)}")
            value = dict(new)
    if not isinstance(value, Mapping):
        found.problems.append(Problem(prefix, f"{prefix} must be an object, got {show(value)}"))
        return {}
    data: dict[str, Any] = {}
    for name, item in _forward(model, value, prefix, found).items():
        key = dotted(prefix, name)
        if name in model.model_fields:
            _walk_field(model.model_fields[name], name, item, key, data, found)
        elif name in model.refused_keys:
            _walk_refused(model, name, item, key, found)
        else:
            known = [*model.model_fields, *model.aliases, *model.legacy_keys]
            found.problems.append(unknown_key(prefix, name, known, value=item))
    return data


def _walk_field(field: FieldInfo, name: str, item: Any, key: str, data: dict[str, Any], found: Findings) -> None:
    shape, inner = shape_of(field.annotation)
    if is_open(item) and not (item == "auto" and takes_auto(field.annotation)):
        found.open[key] = show(item).strip('"')
        found.written[key] = item
    elif shape == "section" and inner is not None and (isinstance(item, Mapping) or inner.legacy_values):
        data[name] = walk(inner, item, key, found)
    elif shape == "named" and inner is not None and isinstance(item, Mapping):
        data[name] = {label: walk(inner, entry, dotted(key, label), found) for label, entry in item.items()}
    elif shape == "free" and isinstance(item, Mapping):
        found.written[key] = item
        data[name] = _walk_free(item, key, found)
    else:
        data[name] = item
        found.written[key] = item


def _walk_free(value: Mapping[str, Any], prefix: str, found: Findings) -> dict[str, Any]:
    """An object of free form without its open values, which whoever takes it fills from its own defaults."""
    data: dict[str, Any] = {}
    for name, item in value.items():
        key = dotted(prefix, name)
        found.written[key] = item
        if is_open(item):
            found.open[key] = show(item).strip('"')
        else:
            data[name] = _walk_free(item, key, found) if isinstance(item, Mapping) else item
    return data


def _walk_refused(model: type[Section], name: str, item: Any, key: str, found: Findings) -> None:
    refused = model.refused_keys[name]
    rule = refused if isinstance(refused, Refused) else Refused(refused)
    found.problems += tree_problems(rule.keys, item, key)
    if Entry(idle=rule.idle).is_idle(item):
        found.idle[key] = item
    else:
        found.problems.append(Problem(key, refusal(key, refused)))


def refusal(key: str, refused: str | Refused) -> str:
    """The line that refuses `key`."""
    return f"{key} is not served: {refused if isinstance(refused, str) else refused.reason}"


def _forward(model: type[Section], value: Mapping[str, Any], prefix: str, found: Findings) -> dict[str, Any]:
    """`value` with aliases and old keys replaced by present ones."""
    data = {name: item for name, item in value.items() if name not in model.aliases and name not in model.legacy_keys}
    for name, item in value.items():
        if name in model.aliases:
            _place(data, model.aliases[name], item, name, prefix, found)
        elif name in model.legacy_keys:
            moved = model.legacy_keys[name]
            rule = moved if isinstance(moved, Moved) else Moved(moved)
            if _forwarded(rule, item, name, prefix, data, found):
                found.notes.append(f"{dotted(prefix, name)} is an old key, read as {dotted(prefix, rule.to)}")
    return data


def _forwarded(rule: Moved, item: Any, name: str, prefix: str, data: dict[str, Any], found: Findings) -> bool:
    if rule.values is not None and not is_open(item):
        matches = [new for old, new in rule.values.items() if type(old) is type(item) and old == item]
        if not matches:
            allowed = ", ".join(show(old) for old in rule.values)
            key = dotted(prefix, name)
            found.problems.append(Problem(key, f"{key} must be one of {allowed}, got {show(item)}"))
            return False
        item = matches[0]
    return _place(data, rule.to, item, name, prefix, found)


def _place(data: dict[str, Any], target: str, item: Any, old: str, prefix: str, found: Findings) -> bool:
    """Put `item` at the dotted `target` of `data`, unless something stands there."""
    *parents, last = target.split(".")
    new_key, old_key = dotted(prefix, target), dotted(prefix, old)
    for parent in parents:
        inner = data.get(parent)
        if not isinstance(inner, Mapping) and not is_open(inner):
            return False  # the wrong type under the new key is reported where the section is walked
        child = dict(inner) if isinstance(inner, Mapping) else {}
        data[parent] = child
        data = child
    if last in data and data[last] == item:
        return True
    if last in data:
        found.problems.append(
            Problem(old_key, f"{old_key} and {new_key} are set to different values and mean the same; keep {new_key}")
        )
        return False
    data[last] = item
    found.moved[new_key] = old_key
    return True


def written_origin(found: Findings, key: str, label: str) -> Origin:
    """The origin of a value that stands in the file, under its old name when it has one."""
    old = found.moved.get(key)
    return Origin("file", f"{label}, as {old}" if old else label)
