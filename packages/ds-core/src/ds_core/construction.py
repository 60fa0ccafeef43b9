"""What is agreed while modules are made: who makes them, and whether their values are divided when they are complete.

Who divides values as a model is constructed does so together with other ranks, which must make the same; who has the
ranks make different layers must not be in the midst of that. Each says here what it does, and asks what the other does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["dividing", "is_divided_by", "made_by", "making"]

_DIVIDED: ContextVar[str | None] = ContextVar("ds_core_construction_divided", default=None)
_MAKERS: ContextVar[tuple[int, ...] | None] = ContextVar("ds_core_construction_makers", default=None)


@contextmanager
def dividing(title: str) -> Iterator[None]:
    """Values of what is made inside are divided over ranks, all of which make the same; `title` names who does it."""
    token = _DIVIDED.set(title)
    try:
        yield
    finally:
        _DIVIDED.reset(token)


def is_divided_by() -> str | None:
    """Who divides the values of what is made here; None: nobody."""
    return _DIVIDED.get()


@contextmanager
def making(ranks: Sequence[int]) -> Iterator[None]:
    """What is made inside is made by these world ranks only."""
    token = _MAKERS.set(tuple(ranks))
    try:
        yield
    finally:
        _MAKERS.reset(token)


def made_by() -> tuple[int, ...] | None:
    """The world ranks that make what is made here; None: all."""
    return _MAKERS.get()
