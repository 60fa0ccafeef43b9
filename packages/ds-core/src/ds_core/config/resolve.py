"""`resolve`: open values filled once, the batch solved, combinations checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ds_core.config.batch import MICRO, STEPS, TRAIN, solve
from ds_core.config.catalog import OPTIMIZERS, RELEASED
from ds_core.config.config import Config
from ds_core.config.facts import Auto, Facts, Origin
from ds_core.config.leaves import leaves
from ds_core.config.problems import Problem, dotted, raise_problems, translate
from ds_core.errors import BatchSizeError, MissingWheelError, PluginError

if TYPE_CHECKING:
    from ds_core.config.raw import RawConfig
    from ds_core.config.section import Section

__all__ = ["resolve", "with_batch", "with_sizes"]

logger = logging.getLogger(__name__)
S = TypeVar("S", bound="Section")
_BATCH_KEYS = (TRAIN, MICRO, STEPS)


def resolve(raw: RawConfig, facts: Facts) -> Config:
    """The config with every open value decided, each with its origin.

    Args:
        raw: from `load`.
        facts: the job. With `data_parallel_size` None the batch waits for `Config.for_data_parallel`.

    Raises:
        ConfigError: a combination cannot be used, or a required value was left open; all problems in one message.
        BatchSizeError: the batch sizes contradict each other.
    """
    from ds_core.config.training import TrainingSection

    filling = _Filling(raw, facts)
    training = filling.fill(TrainingSection, raw.training, "")
    sections: dict[str, Section] = {}
    for key in raw.registry.served():
        section = filling.section(key)
        if section is not None:
            sections[key] = section
    raise_problems(filling.problems, raw.label)
    assert training is not None, "a section without problems is filled"
    config = Config(raw, facts, training, sections, filling.origins)
    problems = [Problem(key, message) for key, message in _combination_problems(config)]
    problems += _optimizer_problems(config)
    if facts.data_parallel_size is not None:
        try:
            config = with_batch(config)
        except BatchSizeError as error:
            problems.insert(0, Problem(TRAIN, str(error), BatchSizeError))
    raise_problems(problems, raw.label)
    _warn_about_vocabulary(config)
    return config


def with_batch(config: Config) -> Config:
    """`config` with the batch solved for its facts' data-parallel ranks.

    Raises:
        BatchSizeError: the sizes contradict each other or the number of ranks.
    """
    ranks = config.facts.data_parallel_size or 1
    given, asked = config.raw.training, config.training.data_parallel_size
    if asked is not None and asked != ranks:
        raise BatchSizeError(
            f"data_parallel_size {asked} ({config.origin('data_parallel_size')}) is not {ranks}, the data-parallel"
            f" ranks of this job of {config.facts.world_size}; set it to {ranks}, take it out, or start another number"
            f" of ranks"
        )
    return with_sizes(config, given, config.raw.origin_of_written)


def with_sizes(config: Config, given: Mapping[str, int | None], origin: Callable[[str], Origin]) -> Config:
    """`config` with the batch solved from the `given` sizes, by key, whose origins `origin` tells.

    Raises:
        BatchSizeError: the sizes contradict each other or the number of ranks.
    """
    ranks = config.facts.data_parallel_size or 1
    train, micro, steps = (given.get(key) for key in _BATCH_KEYS)
    solution = solve(train=train, micro=micro, steps=steps, ranks=ranks, origin=origin)
    batch = solution.batch
    sizes = (batch.train_batch_size, batch.micro_batch_size, batch.accumulation_steps)
    origins = dict(config.origins)
    for key in _BATCH_KEYS:
        left_open = key in config.raw.found.open
        if given.get(key) is not None:
            origins[key] = origin(key)
        elif key in solution.how:
            origins[key] = Origin("auto" if left_open else "derived", solution.how[key])
        else:
            origins[key] = Origin("auto", "the default") if left_open else Origin("default")
    training = config.training.model_copy(update=dict(zip(_BATCH_KEYS, sizes, strict=True)))
    return replace(config, training=training, origins=origins, solved=batch)


class _Filling:
    """Decides open values section by section and notes where every value came from."""

    def __init__(self, raw: RawConfig, facts: Facts) -> None:
        self.raw = raw
        self.facts = facts
        self.problems: list[Problem] = []
        self.origins: dict[str, Origin] = {}

    def section(self, key: str) -> Section | None:
        """Section `key`; None when nobody wrote it and the wheel's model cannot be imported."""
        try:
            model = self.raw.registry.model(key)
        except PluginError as error:
            if key in self.raw.sections:
                raise
            logger.warning("config section %s is left out: %s", key, error)
            return None
        return self.fill(model, self.raw.sections.get(key, {}), key)

    def fill(self, model: type[S], data: Mapping[str, Any], prefix: str) -> S | None:
        """`model` from the written `data`, with what `Section.auto` answers; problems are kept."""
        decided: dict[str, Auto] = {}
        section = self._validated(model, data, prefix)
        if section is None:
            return None
        filled = self._decide(section, data, prefix, decided)
        if decided:
            section = self._validated(model, filled, prefix)
            if section is None:
                return None
        for key, _ in leaves(section, prefix):
            self.origins[key] = self._origin(key, decided)
        return section

    def _validated(self, model: type[S], data: Mapping[str, Any], prefix: str) -> S | None:
        from pydantic import ValidationError

        try:
            return model.model_validate(dict(data))
        except ValidationError as error:
            for problem in translate(error, prefix, data):
                left_open = self._is_open(problem.key)
                hint = "; it cannot be found automatically, give a value" if left_open else ""
                self.problems.append(replace(problem, message=problem.message + hint))
        return None

    def _decide(
        self, section: Section, data: Mapping[str, Any], prefix: str, decided: dict[str, Auto]
    ) -> dict[str, Any]:
        """`data` with the answers of `Section.auto`, here and in nested sections; `decided` gets them by dotted key."""
        from ds_core.config.section import Section

        filled = dict(data)
        for name in type(section).model_fields:
            value, key = getattr(section, name), dotted(prefix, name)
            if isinstance(value, Section):
                inner = self._decide(value, data.get(name, {}), key, decided)
                if inner:
                    filled[name] = inner
            elif isinstance(value, dict) and any(isinstance(item, Section) for item in value.values()):
                written = data.get(name, {})
                filled[name] = {
                    label: self._decide(item, written.get(label, {}), dotted(key, label), decided)
                    for label, item in value.items()
                }
            elif self._is_open(key) or (value is None and name not in data):
                answer = section.auto(name, self.facts)
                if answer is not None:
                    filled[name] = answer.value
                    decided[key] = answer
        return filled

    def _is_open(self, key: str) -> bool:
        parts = key.split(".")
        return any(".".join(parts[:count]) in self.raw.found.open for count in range(len(parts), 0, -1))

    def _origin(self, key: str, decided: Mapping[str, Auto]) -> Origin:
        answer = next((auto for name, auto in decided.items() if key == name or key.startswith(f"{name}.")), None)
        if answer is not None:
            return Origin("auto" if self._is_open(key) else "derived", answer.how)
        if self._is_open(key):
            return Origin("auto", "the default")
        if key in self.raw.found.written:
            return self.raw.origin_of_written(key)
        return Origin("default")


def _combination_problems(config: Config) -> list[tuple[str, str]]:
    found = [("", message) for message in config.training.check(config)]
    for key, section in config.sections.items():
        found += [(key, message) for message in _checks_below(section, config)]
    return found


def _checks_below(section: Section, config: Config) -> list[str]:
    from ds_core.config.section import Section

    messages = list(section.check(config))
    for name in type(section).model_fields:
        value = getattr(section, name)
        nested = value.values() if isinstance(value, dict) else (value,)
        for item in nested:
            if isinstance(item, Section):
                messages += _checks_below(item, config)
    return messages


def _optimizer_problems(config: Config) -> list[Problem]:
    """An optimizer that DeepSpeed has and no installed wheel brings."""
    asked = config.get("optimizer.type")
    known = {name.lower(): (name, wheel) for name, (wheel, _) in OPTIMIZERS.items()}
    name, wheel = known.get(asked.lower() if isinstance(asked, str) else "", ("", "ds-core"))
    if wheel in RELEASED or _brought_by_a_wheel(name):
        return []
    message = (
        f"optimizer.type {name} is planned in {wheel}, which is not released yet; name another optimizer, for example"
        f" AdamW"
    )
    return [Problem("optimizer.type", message, MissingWheelError)]


def _brought_by_a_wheel(name: str) -> bool:
    from ds_core.plugins import manager

    return any(provided.item.name.lower() == name.lower() for provided in manager().collect("ds_optimizers"))


def _warn_about_vocabulary(config: Config) -> None:
    size = config.training.vocabulary_size
    if size is not None and size % 8 and os.environ.get("RANK", "0") == "0":
        logger.warning(
            "vocabulary_size %d is not a multiple of 8, which costs speed on most devices; pad it to %d",
            size,
            (size + 7) // 8 * 8,
        )
