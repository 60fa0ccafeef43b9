"""`load`: a config read, its keys and types checked, nothing filled in yet."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ds_core.config.facts import Origin
from ds_core.config.forward import forward_top_level
from ds_core.config.problems import Problem, raise_problems, translate
from ds_core.config.source import Source, plain, read
from ds_core.errors import ConfigError

if TYPE_CHECKING:
    from ds_core.config.registry import Claim, Registry
    from ds_core.config.section import Section
    from ds_core.config.walk import Findings
    from ds_core.hooks import ConfigSection

__all__ = ["RawConfig", "load", "type_problems"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RawConfig:
    """A config whose keys are known and whose given values have the right type.

    Args:
        label: what messages call it, a file name for example.
        registry: who serves which key.
        tree: the config as written, with values set by `override`.
        training: given top-level scalars.
        sections: given values of each served section that is written.
        found: what was written, left open, forwarded.
        overrides: dotted keys that `override` set, with their origins.
    """

    label: str
    registry: Registry
    tree: Mapping[str, Any]
    training: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]]
    found: Findings
    overrides: Mapping[str, Origin] = field(default_factory=dict)

    def override(self, key: str, value: Any, origin: Origin) -> RawConfig:
        """This config with `value` under the dotted `key`, above what the file says.

        Args:
            key: for example ``"optimizer.params.lr"``.
            value: JSON value, ``"auto"`` and None included.
            origin: kind ``"argument"`` or ``"environment"``, with its name.

        Raises:
            ConfigError: the key is unknown or the value does not fit it.
        """
        tree = copy.deepcopy(dict(self.tree))
        *parents, last = key.split(".")
        node: dict[str, Any] = tree
        for parent in parents:
            inner = node.get(parent)
            node[parent] = inner if isinstance(inner, dict) else {}
            node = node[parent]
        problems: list[Problem] = []
        node[last] = plain(value, key, problems)
        raise_problems(problems, self.label)
        return _check(tree, self.label, self.registry, {**self.overrides, key: origin})

    @property
    def accelerator(self) -> str | None:
        """The accelerator the config asks for by name; it is chosen before anything is resolved."""
        name = self.training.get("accelerator")
        return name if isinstance(name, str) else None

    def __getitem__(self, key: str) -> Any:
        """Section `key` with defaults in place of what was left open, for what must be read before `resolve`.

        Raises:
            ConfigError: no installed wheel serves it.
        """
        if key not in self.registry.claims:
            outcome = self.registry.outcome(key)
            raise ConfigError(outcome.reason or f"config section {key} is not served by any installed wheel")
        return self.registry.model(key).model_validate(dict(self.sections.get(key, {})))

    def origin_of_written(self, key: str) -> Origin:
        """Where a written value came from."""
        from ds_core.config.walk import written_origin

        for prefix in _prefixes(key):
            if prefix in self.overrides:
                return self.overrides[prefix]
        return written_origin(self.found, key, self.label)


def load(source: Source, *, sections: Iterable[Claim | ConfigSection] | None = None) -> RawConfig:
    """A config read and checked: every key known, every given value of the right type.

    Args:
        source: path, mapping, or base64 text of JSON or HJSON; None reads as an empty config.
        sections: sections beside ds-core's own, in place of those of installed wheels.

    Raises:
        ConfigError: it cannot be read, or has problems; the message lists all of them, the first in its first line.
        MissingWheelError: all its problems are sections that wheels not installed would serve.
        PluginConflictError: two wheels claim one key.
    """
    from ds_core.config.registry import Registry

    registry = Registry.installed() if sections is None else Registry.of(sections)
    tree, label = read(source)
    raw = _check(tree, label, registry, {})
    if raw.found.notes and os.environ.get("RANK", "0") == "0":
        logger.warning("%s: %s", label, "; ".join(raw.found.notes))
    return raw


def _check(tree: dict[str, Any], label: str, registry: Registry, overrides: Mapping[str, Origin]) -> RawConfig:
    from ds_core.config.registry import SCHEMA_KEY
    from ds_core.config.training import TrainingSection
    from ds_core.config.walk import Findings, walk

    found = Findings()
    tree = forward_top_level(tree, registry, found)
    scalars: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    scalar_keys = registry.training_keys()
    for key, value in tree.items():
        if key in scalar_keys:
            scalars[key] = value
        elif key in registry.claims:
            model = registry.model(key)
            before = len(found.problems)
            sections[key] = walk(model, value, key, found)
            if len(found.problems) == before or isinstance(value, Mapping):
                found.problems += type_problems(model, sections[key], key, found)
        elif key != SCHEMA_KEY:
            problems, idle = registry.unserved(key, value)
            found.problems += problems
            if idle:
                found.idle[key] = value
    training = walk(TrainingSection, scalars, "", found)
    found.problems += type_problems(TrainingSection, training, "", found)
    order = list(tree)
    found.problems.sort(key=lambda problem: _place_in(order, problem.key))
    raise_problems(found.problems, label)
    return RawConfig(label, registry, tree, training, sections, found, overrides)


def type_problems(model: type[Section], data: Mapping[str, Any], prefix: str, found: Findings) -> list[Problem]:
    """Values of the wrong type; keys that are required but were left open are not among them."""
    from pydantic import ValidationError

    try:
        model.model_validate(dict(data))
    except ValidationError as error:
        problems = translate(error, prefix, data)
        return [
            problem for problem in problems if problem.key not in found.open and not _below_open(problem.key, found)
        ]
    return []


def _below_open(key: str, found: Findings) -> bool:
    return any(prefix in found.open for prefix in _prefixes(key))


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _place_in(order: list[str], key: str) -> int:
    top = key.partition(".")[0]
    return order.index(top) if top in order else len(order)
