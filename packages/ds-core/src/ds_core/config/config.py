"""`Config`: a resolved, frozen config that knows where each of its values came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ds_core.config.batch import MICRO, STEPS, TRAIN, Batch
from ds_core.config.facts import Facts, Origin
from ds_core.config.leaves import leaves, to_plain
from ds_core.config.problems import unknown_key
from ds_core.errors import BatchSizeError, ConfigError, MissingWheelError

if TYPE_CHECKING:
    from ds_core.config.raw import RawConfig
    from ds_core.config.section import Section
    from ds_core.config.training import TrainingSection

__all__ = ["Config", "DiffRow", "ExplainRow"]

_GIVEN = ("file", "argument", "environment")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class ExplainRow:
    """One value of a config and its origin."""

    key: str
    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One value that differs between two configs; None on a side that has no such key."""

    key: str
    left: ExplainRow | None
    right: ExplainRow | None


@dataclass(frozen=True, eq=False)
class Config:
    """A resolved config. Made by `ds_core.config.resolve`; nothing in it changes afterwards.

    Args:
        raw: the config it was resolved from.
        facts: the facts it was resolved against.
        training: top-level scalars; the three batch sizes are filled in.
        sections: every served section, written or not.
        origins: dotted key of every value to its origin.
        solved: the batch, or None while data-parallel ranks are not known.
    """

    raw: RawConfig
    facts: Facts
    training: TrainingSection
    sections: Mapping[str, Section]
    origins: Mapping[str, Origin] = field(repr=False)
    solved: Batch | None = None

    @property
    def batch(self) -> Batch:
        """The three batch sizes.

        Raises:
            BatchSizeError: the config was resolved without a number of data-parallel ranks.
        """
        if self.solved is None:
            raise BatchSizeError(
                "the batch sizes are not solved: the config was resolved without data_parallel_size; call"
                " Config.for_data_parallel once the mesh is planned"
            )
        return self.solved

    def __getitem__(self, key: str) -> Any:
        """The model of section `key`.

        Raises:
            MissingWheelError: a wheel that is not installed serves it.
            ConfigError: nobody serves it.
        """
        if key in self.sections:
            return self.sections[key]
        outcome = self.raw.registry.outcome(key)
        if outcome.kind == "missing":
            raise MissingWheelError(outcome.reason)
        if outcome.kind == "refused":
            raise ConfigError(outcome.reason)
        if key in type(self.training).model_fields:
            raise ConfigError(f"{key} is a plain value, not a section; read config.training.{key}")
        raise ConfigError(unknown_key("", key, self.sections, hint="`ds config schema` lists the known ones.").message)

    def section_or_none(self, key: str) -> Any:
        """The model of section `key`, or None when no installed wheel serves it."""
        return self.sections.get(key)

    def __contains__(self, key: object) -> bool:
        """Whether an installed wheel serves section `key`."""
        return key in self.sections

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a dotted key or a top-level scalar's name; `default` where no wheel serves it."""
        head, *rest = key.split(".")
        node: Any = self.sections.get(head, _MISSING)
        if node is _MISSING:
            node, rest = self.training, [head, *rest]
        for name in rest:
            if isinstance(node, Mapping):
                node = node.get(name, _MISSING)
            else:
                fields = getattr(type(node), "model_fields", {})
                node = getattr(node, name) if name in fields else _MISSING
            if node is _MISSING:
                return default
        return node

    def origin(self, key: str) -> Origin:
        """Where the value under the dotted `key` came from.

        Raises:
            ConfigError: the config has no such key.
        """
        if key in self.origins:
            return self.origins[key]
        if key in self.raw.found.written:
            return self.raw.origin_of_written(key)
        if key in self.sections or any(known.startswith(f"{key}.") for known in self.origins):
            return Origin("default")
        raise ConfigError(unknown_key("", key, self.origins, hint="`ds config explain` lists the known ones.").message)

    def is_set(self, key: str) -> bool:
        """Whether the value or section was given: in the file, by argument or from the environment, and not open."""
        if key in self.origins:
            return self.origins[key].kind in _GIVEN
        return key in self.raw.found.written and key not in self.raw.found.open

    def for_data_parallel(self, size: int) -> Config:
        """This config with the batch solved for `size` data-parallel ranks.

        Raises:
            BatchSizeError: the batch sizes do not fit that many ranks.
        """
        from ds_core.config.resolve import with_batch

        return with_batch(replace(self, facts=replace(self.facts, data_parallel_size=size)))

    def batch_for(
        self,
        *,
        train_batch_size: int | None = None,
        micro_batch_size: int | None = None,
        accumulation_steps: int | None = None,
    ) -> Config:
        """This config after a change of batch sizes at run time; its `batch` has the new sizes.

        A new train_batch_size keeps the micro-batch and changes accumulation; a new micro-batch or accumulation keeps
        the other and changes train_batch_size.

        Raises:
            BatchSizeError: the sizes do not divide.
        """
        from ds_core.config.resolve import with_sizes

        asked = {TRAIN: train_batch_size, MICRO: micro_batch_size, STEPS: accumulation_steps}
        for key, size in asked.items():
            if size is not None and not _is_size(size):
                raise BatchSizeError(f"{key} must be an integer of at least 1, got {size!r}")
        sizes = dict(asked)
        if micro_batch_size is None and (train_batch_size is None or accumulation_steps is None):
            sizes[MICRO] = self.batch.micro_batch_size
        if accumulation_steps is None and train_batch_size is None:
            sizes[STEPS] = self.batch.accumulation_steps
        argument = {key: Origin("argument", "changed at run time") for key, size in asked.items() if size is not None}
        return with_sizes(self, sizes, lambda key: argument.get(key) or self.origin(key))

    def to_dict(self) -> dict[str, Any]:
        """Every value as JSON; reading it again gives an equal config."""
        result: dict[str, Any] = to_plain(self.training)
        result.update((key, to_plain(section)) for key, section in self.sections.items())
        return result

    def rows(self) -> Iterator[ExplainRow]:
        """Every value with its origin: top-level scalars, sections, then what is switched off and served by nobody."""
        for key, value in leaves(self.training, ""):
            yield ExplainRow(key, value, self.origins[key])
        for name, section in self.sections.items():
            for key, value in leaves(section, name):
                yield ExplainRow(key, value, self.origins[key])
        for key in self.raw.found.open:
            if key not in self.origins and key not in self.sections and "." in key:
                yield ExplainRow(key, None, Origin("auto", "left to whoever takes it"))
        for key, value in self.raw.found.idle.items():
            origin = self.raw.origin_of_written(key)
            yield ExplainRow(key, value, Origin(origin.kind, f"{origin.detail}; asks for nothing"))

    def diff(self, other: Config) -> list[DiffRow]:
        """Values that differ between this config and `other`, origins aside."""
        left = {row.key: row for row in self.rows()}
        right = {row.key: row for row in other.rows()}
        rows: list[DiffRow] = []
        for key in [*left, *(key for key in right if key not in left)]:
            one, two = left.get(key), right.get(key)
            if one is None or two is None or one.value != two.value:
                rows.append(DiffRow(key, one, two))
        return rows


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
