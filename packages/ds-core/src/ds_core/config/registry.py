"""Who serves which config key: sections of installed wheels first, then the catalog's honest answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ds_core.config.catalog import ELSEWHERE, ENTRIES, RELEASED, Entry, Tree
from ds_core.config.problems import Problem, dotted, unknown_key
from ds_core.errors import ConfigError, MissingWheelError, PluginConflictError, PluginError

if TYPE_CHECKING:
    from ds_core.config.section import Section
    from ds_core.hooks import ConfigSection

__all__ = ["Claim", "Outcome", "OutcomeKind", "Registry"]

OutcomeKind = Literal["served", "missing", "refused", "unknown"]
SCHEMA_KEY = "$schema"
"""Editors write the address of the schema under this key; it says nothing to us."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A config section and the wheel that brought it."""

    section: ConfigSection
    owner: str
    version: str = ""
    location: str = ""

    def __str__(self) -> str:
        """``ds-zero 0.1.0 (/path)``, as conflict messages name it."""
        text = f"{self.owner} {self.version}".rstrip()
        return f"{text} ({self.location})" if self.location else text


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a key: served by a wheel, waiting for one, refused, or known to nobody."""

    kind: OutcomeKind
    owner: str = ""
    reason: str = ""


class Registry:
    """The config keys of one installation. Build it with `installed` or `of`."""

    def __init__(self, claims: Iterable[Claim], wheels: Mapping[str, str] | None = None) -> None:
        """Index `claims` by key and by old spelling.

        Args:
            claims: sections and who brought them, ds-core's own included.
            wheels: installed wheels that have a plugin, with their versions, whether they brought a section or not.

        Raises:
            PluginConflictError: two wheels claim one key.
        """
        self.wheels: Mapping[str, str] = wheels or {}
        self.claims: dict[str, Claim] = {}
        self.legacy: dict[str, str] = {}
        self._models: dict[str, type[Section]] = {}
        holders: dict[str, Claim] = {}
        for claim in claims:
            for key in (claim.section.key, *claim.section.legacy_keys):
                self._hold(key, claim, holders)
            self.claims[claim.section.key] = claim
            self.legacy.update(claim.section.legacy_keys)
        core = Claim(_training_section(), "ds-core")
        for key in holders:
            if key in self.training_keys():
                raise PluginConflictError(_conflict(key, core, holders[key]))

    @classmethod
    def installed(cls) -> Registry:
        """Sections of ds-core and of every installed wheel.

        Raises:
            PluginConflictError: two wheels claim one key.
        """
        from ds_core.plugins import manager

        plugins = manager()
        claims = [
            Claim(provided.item, provided.record.dist, provided.record.version, provided.record.location)
            for provided in plugins.collect("ds_config_sections")
        ]
        return cls(claims, {record.dist: record.version for record in plugins.records})

    @classmethod
    def of(cls, sections: Iterable[Claim | ConfigSection]) -> Registry:
        """Sections of ds-core and the ones given, each bare one under the owner ``"caller"``."""
        from ds_core.config.sections import SECTIONS

        given = [item if isinstance(item, Claim) else Claim(item, "caller") for item in sections]
        return cls([*(Claim(section, "ds-core") for section in SECTIONS), *given])

    @staticmethod
    def _hold(key: str, claim: Claim, holders: dict[str, Claim]) -> None:
        if key in holders and holders[key] != claim:
            raise PluginConflictError(_conflict(key, holders[key], claim))
        holders[key] = claim

    def served(self) -> Iterator[str]:
        """Served section keys, sorted."""
        return iter(sorted(self.claims))

    def training_keys(self) -> frozenset[str]:
        """Top-level scalars that ds-core serves or refuses itself."""
        from ds_core.config.training import TrainingSection

        return frozenset([*TrainingSection.model_fields, *TrainingSection.refused_keys])

    def known(self) -> frozenset[str]:
        """Every top-level key somebody knows."""
        return frozenset([*self.training_keys(), *self.claims, *self.legacy, *ENTRIES])

    def model(self, key: str) -> type[Section]:
        """The model of a served section; imported once.

        Raises:
            PluginError: it cannot be imported, or is not a `Section`.
        """
        if key not in self._models:
            from ds_core.config.section import Section
            from ds_core.plugins import load_ref

            claim = self.claims[key]
            model: Any = load_ref(claim.section.model)
            if not (isinstance(model, type) and issubclass(model, Section)):
                raise PluginError(
                    f"config section {key} of {claim} is {claim.section.model}, which must be a subclass of"
                    f" ds_core.config.Section"
                )
            self._models[key] = model
        return self._models[key]

    def outcome(self, key: str) -> Outcome:
        """What becomes of the top-level key `key` when it asks for something."""
        from ds_core.config.training import TrainingSection

        if key in self.claims:
            return Outcome("served", self.claims[key].owner)
        if key in TrainingSection.model_fields or key == SCHEMA_KEY:
            return Outcome("served", "ds-core")
        if key in TrainingSection.refused_keys:
            refused = TrainingSection.refused_keys[key]
            return Outcome("refused", reason=refused if isinstance(refused, str) else refused.reason)
        if key in self.legacy:
            return Outcome("served", self.claims[self.legacy[key].partition(".")[0]].owner)
        entry = ENTRIES.get(key)
        if entry is None:
            return Outcome("unknown")
        if entry.refusal:
            return Outcome("refused", reason=f"{key} is not served: {entry.refusal}")
        return Outcome("missing", entry.wheel, self._missing(key, entry))

    def _missing(self, key: str, entry: Entry) -> str:
        wheel = entry.wheel
        if wheel not in RELEASED:
            return (
                f"{key} is planned in {wheel}, which is not released yet; no wheel serves it today, so take it out of"
                f" the config"
            )
        if wheel in self.wheels:
            return (
                f"{key} belongs to {wheel}, and the installed {wheel} {self.wheels[wheel]} does not serve it; see"
                f" `ds plugins why {wheel}`, or pip install -U {wheel}"
            )
        return f"{key} asks for {wheel}, which is not installed: pip install {wheel}"

    def unserved(self, key: str, value: Any) -> tuple[list[Problem], bool]:
        """Findings about a top-level key nobody here serves, and whether it asks for nothing."""
        entry = ENTRIES.get(key)
        if entry is None:
            return [unknown_key("", key, self.known(), value=value, hint=_elsewhere_hint(key))], False
        problems = list(tree_problems(entry.keys, value, key))
        if entry.is_idle(value):
            return problems, True
        outcome = self.outcome(key)
        error = MissingWheelError if outcome.kind == "missing" else ConfigError
        return [*problems, Problem(key, outcome.reason, error)], False


def tree_problems(tree: Tree, value: Any, prefix: str) -> Iterator[Problem]:
    """Names in `value` that the catalog's `tree` does not have."""
    if not tree or not isinstance(value, Mapping):
        return
    for name, item in value.items():
        if name in tree:
            inner = tree[name]
        elif "*" in tree:
            inner = tree["*"]
        else:
            yield unknown_key(prefix, name, tree, value=item)
            continue
        if inner:
            yield from tree_problems(inner, item, dotted(prefix, name))


def _elsewhere_hint(key: str) -> str:
    for wheel, config, tree in ELSEWHERE.values():
        if key in tree:
            return f"It is a key of {config} ({wheel}, not released yet), not of a training config."
    return "`ds config schema` lists the known ones."


def _conflict(key: str, first: Claim, second: Claim) -> str:
    return (
        f"config section {key!r} is claimed by {first} and by {second}; uninstall one of them, or set"
        f" DS_PLUGINS_DISABLE to the name of one"
    )


def _training_section() -> ConfigSection:
    from ds_core.hooks import ConfigSection

    return ConfigSection(key="", model="ds_core.config.training:TrainingSection")
