"""The base class of every config section: strict types, unknown keys refused, and the rules a section may add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator

from ds_core.config.catalog import Tree
from ds_core.config.facts import Auto, Facts
from ds_core.config.shape import members, origin_of

if TYPE_CHECKING:
    from ds_core.config.config import Config

__all__ = ["DTypeName", "Moved", "Refused", "Section", "case_insensitive"]


@dataclass(frozen=True, slots=True)
class Moved:
    """Where an old key lives now.

    Args:
        to: dotted key inside the same section.
        values: old value to new value; None keeps the value. A value not listed is an error.
    """

    to: str
    values: Mapping[Any, Any] | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A known key that cannot be served.

    Args:
        reason: why, and what to do instead; completes "is not served: ...".
        idle: values that ask for nothing and pass, for an object the pairs that make it so; null, "auto", false, and
            objects that are empty or hold nothing but false always do.
        keys: names inside, when it is an object.
    """

    reason: str
    idle: tuple[Any, ...] = ()
    keys: Tree = field(default_factory=dict)


class Section(BaseModel):
    """One JSON object of a config. Subclass it, annotate fields, and document each with a string under it.

    Values are strict: ``5e8`` passes for an integer when it is one, ``true`` and ``"4"`` never do. Fields may be plain
    types, ``Literal``, lists, tuples, paths, dicts, other sections and dicts of sections. A key written as ``"auto"``
    or null is asked from `auto`, and so is an absent key whose default is None; with no answer the default stands.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings of a field's name, equally good."""
    legacy_keys: ClassVar[Mapping[str, str | Moved]] = {}
    """Old keys and the dotted key inside this section that replaces each; forwarded with one warning line."""
    legacy_values: ClassVar[tuple[tuple[Any, Mapping[str, Any]], ...]] = ()
    """Pairs of an old plain value of the whole section and the object that replaces it."""
    refused_keys: ClassVar[Mapping[str, str | Refused]] = {}
    """Known keys that cannot be served, each with the reason."""

    def auto(self, key: str, facts: Facts) -> Auto | None:
        """The value of field `key` that was left open, and how it was found; None keeps the default.

        Called once, on the section with its defaults in place of what was left open.
        """
        return None

    def check(self, config: Config) -> Iterable[str]:
        """Messages about combinations that cannot be used, here or with other sections; each names its dotted keys."""
        return ()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, also under a former name of it; `default` where there is no such key.

        Programs written for a config that is a dict read an engine's config this way.
        """
        name = self._field(key)
        return default if name is None else getattr(self, name)

    def __getitem__(self, key: str) -> Any:
        name = self._field(key)
        if name is None:
            raise KeyError(key)
        return getattr(self, name)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._field(key) is not None

    def _field(self, key: str) -> str | None:
        moved = self.legacy_keys.get(key, key)
        name = self.aliases.get(key, moved if isinstance(moved, str) else key)
        return name if name in type(self).model_fields else None

    @model_validator(mode="before")
    @classmethod
    def _conform(cls, data: Any) -> Any:
        """Give integers, tuples and paths their Python types, which strict validation asks for."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            name: _conform(fields[name].annotation, value) if name in fields else value for name, value in data.items()
        }


def _conform(annotation: Any, value: Any) -> Any:
    kinds = members(annotation)
    if isinstance(value, float):
        wants_int = int in kinds and float not in kinds
        return int(value) if wants_int and value.is_integer() else value
    if isinstance(value, str):
        return Path(value) if Path in kinds and str not in kinds else value
    if isinstance(value, list):
        return _conform_list(kinds, value)
    if isinstance(value, dict):
        inner = next((kind.__args__[1] for kind in kinds if origin_of(kind) is dict), None)
        return value if inner is None else {name: _conform(inner, item) for name, item in value.items()}
    return value


def _conform_list(kinds: tuple[Any, ...], value: list[Any]) -> Any:
    for kind in kinds:
        container = origin_of(kind)
        if container is list:
            return [_conform(kind.__args__[0], item) for item in value]
        if container is tuple:
            args = kind.__args__
            item_types = [args[0]] * len(value) if args[-1] is Ellipsis else [*args, *[Any] * len(value)]
            return tuple(_conform(item_type, item) for item_type, item in zip(item_types, value, strict=False))
    return value


_DTYPE_SPELLINGS = {
    "float32": ("float32", "fp32", "float", "torch.float32"),
    "float16": ("float16", "fp16", "half", "torch.float16"),
    "bfloat16": ("bfloat16", "bf16", "torch.bfloat16"),
}
_DTYPE_NAMES = {spelling: name for name, spellings in _DTYPE_SPELLINGS.items() for spelling in spellings}


def _canonical_dtype(value: Any) -> Any:
    return _DTYPE_NAMES.get(value, value) if isinstance(value, str) else value


def case_insensitive(*allowed: str) -> Callable[[Any], Any]:
    """A function that gives a string the case it has in `allowed`."""
    spelled = {name.lower(): name for name in allowed}
    return lambda value: spelled.get(value.lower(), value) if isinstance(value, str) else value


DTypeName = Annotated[
    Literal["float32", "float16", "bfloat16"],
    BeforeValidator(_canonical_dtype),
    WithJsonSchema({"enum": sorted(_DTYPE_NAMES)}),
]
"""A floating-point type by torch's name; DeepSpeed's short spellings (fp32, fp16, half, bf16) are taken too."""
