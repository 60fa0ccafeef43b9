"""What a field of a section may hold, read from its annotation."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from ds_core.config.section import Section

__all__ = ["FieldShape", "members", "origin_of", "shape_of", "takes_auto"]

FieldShape = Literal["section", "named", "free", "plain"]
"""A nested section, a dict of sections by name, an object of free form, or a plain value."""


def origin_of(annotation: Any) -> Any:
    """``dict`` for ``dict[str, int]``; None for what is not generic."""
    return get_origin(annotation)


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, flattened and without `Annotated`; a single one for anything else."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return tuple(kind for part in get_args(annotation) for kind in members(part))
    return (annotation,)


def takes_auto(annotation: Any) -> bool:
    """Whether the string ``"auto"`` is itself one of the values."""
    return any(get_origin(kind) is Literal and "auto" in get_args(kind) for kind in members(annotation))


def shape_of(annotation: Any) -> tuple[FieldShape, type[Section] | None]:
    """The shape of a field, and the section class behind it."""
    from ds_core.config.section import Section

    for kind in members(annotation):
        if isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, Section):
            return "section", kind
        if get_origin(kind) is dict:
            inner = members(get_args(kind)[1])[0]
            if isinstance(inner, type) and get_origin(inner) is None and issubclass(inner, Section):
                return "named", inner
            return "free", None
        if kind is dict:
            return "free", None
    return "plain", None
