"""Declared order: sorts named things by what each says comes before, after, or never beside it."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from ds_core.errors import PluginError

__all__ = ["Ordered", "declared_order"]


class Ordered(Protocol):
    """What declares its place. Names of things that are absent are ignored."""

    @property
    def before(self) -> Sequence[str]:
        """Names this comes before."""

    @property
    def after(self) -> Sequence[str]:
        """Names this comes after."""

    @property
    def conflicts_with(self) -> Sequence[str]:
        """Names this cannot be beside."""


def declared_order(items: Mapping[str, Ordered], kind: str) -> list[str]:
    """Names in declared order, ties by name; independent of the mapping's order.

    Args:
        items: by name.
        kind: what they are, for messages: "part", "transform".

    Raises:
        PluginError: two conflict, or the declarations go in a circle.
    """
    graph: dict[str, set[str]] = {name: set() for name in sorted(items)}
    for name in sorted(items):
        item = items[name]
        for rival in item.conflicts_with:
            if rival in items:
                raise PluginError(f"{kind}s {name!r} and {rival!r} cannot be in one engine; turn one of them off")
        graph[name].update(predecessor for predecessor in item.after if predecessor in items)
        for successor in item.before:
            if successor in items:
                graph[successor].add(name)
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(error.args[1])
        raise PluginError(f"{kind}s declare a circular order: {circle}; check `before` and `after`") from None
    ordered: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        ordered.extend(ready)
        sorter.done(*ready)
    return ordered
