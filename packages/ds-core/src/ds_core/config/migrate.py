"""`migrate`: a config written for DeepSpeed, rewritten in present names, with a remark on everything that changed.

What asks for nothing is taken out, what is not served is taken out and named with the reason, what is unknown or wrong
stays where it is and is named. Values left open (``"auto"``) stay open, for Hugging Face's libraries fill them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ds_core.config.forward import forward_top_level
from ds_core.config.problems import Problem, show
from ds_core.config.raw import type_problems
from ds_core.config.registry import SCHEMA_KEY, Registry
from ds_core.config.source import Source, read
from ds_core.config.training import TrainingSection
from ds_core.config.walk import Findings, walk

__all__ = ["Migration", "Remark", "migrate"]

Kind = Literal["renamed", "taken out", "not served", "wrong", "differs"]

DIFFERENT: Mapping[str, tuple[str, str]] = {
    "zero_optimization.max_reuse_distance": (
        "zero_optimization.stage",
        "parameters are released after every use where this is not set; DeepSpeed keeps those that are used again "
        "within 10^9 elements, which is all of a small model",
    ),
    "zero_optimization.overlap_comm": (
        "zero_optimization.stage",
        "gradients are reduced while backward goes on at stage 3 only, where this is not set",
    ),
}
"""Keys whose defaults differ: the key that makes it matter, and what to know. Not said where the key is written."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What became of a key, or what to know about it.

    Args:
        key: dotted, as it is written in the old config.
        kind: what became of it.
        text: a sentence.
    """

    key: str
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Migration:
    """A rewritten config and what there is to say about it."""

    label: str
    config: dict[str, Any]
    remarks: tuple[Remark, ...]

    @property
    def is_clean(self) -> bool:
        """Whether the rewritten config asks for all that the old one asked for."""
        return not any(remark.kind in ("not served", "wrong") for remark in self.remarks)


def migrate(source: Source, *, registry: Registry | None = None) -> Migration:
    """Rewrites a config in present names.

    Args:
        source: path, mapping, or base64 text of JSON or HJSON.
        registry: who serves which key; default: installed wheels.

    Raises:
        ConfigError: it cannot be read.
    """
    registry = registry or Registry.installed()
    old, label = read(source)
    found = Findings()
    tree = forward_top_level(old, registry, found)
    config: dict[str, Any] = {}
    problems: list[Problem] = []
    scalars = {key: value for key, value in tree.items() if key in registry.training_keys()}
    for key, value in tree.items():
        if key in registry.claims:
            model = registry.model(key)
            config[key] = walk(model, value, key, found)
            problems += type_problems(model, config[key], key, found)
        elif key not in scalars and key != SCHEMA_KEY:
            unserved, is_idle = registry.unserved(key, value)
            problems += unserved
            if is_idle:
                found.idle[key] = value
    config |= walk(TrainingSection, scalars, "", found)
    problems += type_problems(TrainingSection, {key: config[key] for key in scalars if key in config}, "", found)
    problems += found.problems
    _reopen(config, found)
    config = _without_empty(config, tree)
    wrong = [remark for problem in problems for remark in _refusals(problem, registry, found, old, config)]
    remarks = [*_renames(found), *_idle(found), *wrong, *_differences(config, found)]
    place = {name: number for number, name in enumerate(old)}
    remarks.sort(key=lambda remark: place.get(remark.key.partition(".")[0], len(place)))
    return Migration(label, {key: config[key] for key in _in_order(config, tree)}, tuple(dict.fromkeys(remarks)))


def _in_order(config: Mapping[str, Any], tree: Mapping[str, Any]) -> list[str]:
    """The keys as the old config has them."""
    return [*(key for key in tree if key in config), *(key for key in config if key not in tree)]


def _reopen(config: dict[str, Any], found: Findings) -> None:
    """Puts back what was left open with ``"auto"``; null is the same as nothing."""
    for key, written in found.open.items():
        if written == "auto":
            *parents, last = key.split(".")
            node = config
            for parent in parents:
                node = node.setdefault(parent, {})
            if isinstance(node, dict):
                node.setdefault(last, "auto")


def _without_empty(config: dict[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Without sections that nothing is left of."""
    return {key: value for key, value in config.items() if value != {} or tree.get(key) == {}}


def _renames(found: Findings) -> Iterator[Remark]:
    for new, old in found.moved.items():
        yield Remark(old, "renamed", f"{old} is {new} now")
    for note in found.notes:
        if "is an old form" in note:
            yield Remark(note.partition(":")[0], "renamed", note)


def _idle(found: Findings) -> Iterator[Remark]:
    for key, value in found.idle.items():
        yield Remark(key, "taken out", f"{key}: {show(value)} asked for nothing")


def _refusals(
    problem: Problem, registry: Registry, found: Findings, old: Mapping[str, Any], config: dict[str, Any]
) -> Iterator[Remark]:
    """A key nobody serves is out of the config already; what is unknown or wrong is put back, so nothing is lost."""
    top = problem.key.partition(".")[0]
    is_refused = "is not served" in problem.message or (top not in registry.claims and top in registry.known())
    if is_refused and top not in registry.training_keys():
        yield Remark(problem.key, "not served", problem.message)
    elif is_refused:
        yield Remark(problem.key, "not served" if "is not served" in problem.message else "wrong", problem.message)
    else:
        _put_back(problem.key, old, config)
        yield Remark(problem.key, "wrong", problem.message)


def _put_back(key: str, old: Mapping[str, Any], config: dict[str, Any]) -> None:
    value: Any = old
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return
        value = value[part]
    *parents, last = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node[last] = copy.deepcopy(value)


def _differences(config: Mapping[str, Any], found: Findings) -> Iterator[Remark]:
    for key, (cause, text) in DIFFERENT.items():
        if cause in found.written and key not in found.written and _value(config, cause) == 3:
            yield Remark(key, "differs", f"{key}: {text}")


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
