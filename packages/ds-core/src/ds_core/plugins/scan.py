"""The one scan of installed wheels for entry points of group ``ds_core.plugins``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ds_core.hooks import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["Candidate", "normalize", "scan"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry point as the wheel's metadata states it; nothing of it is imported yet.

    Args:
        dist: name of the wheel.
        version: version of the wheel.
        name: name of the entry point, the plugin's short name.
        value: what it names, ``"package.module"``.
        location: directory the wheel's metadata was found in.
        requires: the wheel's ``Requires-Dist`` lines.
        duplicates: other directories on ``sys.path`` with the same version of the same wheel.
        hidden_by: directory of another version of the same wheel that comes first on ``sys.path``; that one is used.
    """

    dist: str
    version: str
    name: str
    value: str
    location: str = ""
    requires: Sequence[str] = ()
    duplicates: tuple[str, ...] = ()
    hidden_by: str = ""

    @property
    def id(self) -> str:
        """``"dist:name"`` with the wheel's name normalized, so `My_Wheel` and `my-wheel` are one."""
        return f"{normalize(self.dist)}:{self.name}"


def normalize(dist: str) -> str:
    """A wheel's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", dist).lower()


def _candidates(found: Distribution) -> list[Candidate]:
    text = found.read_text("entry_points.txt")
    if not text or ENTRY_POINT_GROUP not in text:
        return []
    entries = [entry for entry in found.entry_points if entry.group == ENTRY_POINT_GROUP]
    if not entries:
        return []
    metadata = found.metadata
    dist = metadata["Name"] or "(wheel without a name)"
    version = metadata["Version"] or "0"
    requires = tuple(metadata.get_all("Requires-Dist") or ())
    location = str(Path(str(found.locate_file(""))).resolve())
    return [Candidate(dist, version, entry.name, entry.value.strip(), location, requires) for entry in entries]


def scan(distributions: Iterable[Distribution] | None = None) -> list[Candidate]:
    """Every entry point of the group, in `sys.path` order, with wheels that occur twice marked.

    A wheel seen twice in the same version is one wheel (an editable install often is); in two versions, the first is
    used and the others come back with `hidden_by` set.
    """
    if distributions is None:
        import importlib.metadata  # 30-50 ms, so not at the top

        distributions = importlib.metadata.distributions()
    chosen: dict[str, list[Candidate]] = {}
    hidden: list[Candidate] = []
    for distribution in distributions:
        found = _candidates(distribution)
        if not found:
            continue
        key = normalize(found[0].dist)
        first = chosen.get(key)
        if first is None:
            chosen[key] = found
        elif found[0].version != first[0].version:
            hidden.extend(replace(candidate, hidden_by=first[0].location) for candidate in found)
        elif found[0].location != first[0].location and found[0].location not in first[0].duplicates:
            chosen[key] = [replace(c, duplicates=(*c.duplicates, found[0].location)) for c in first]
    return [candidate for group in chosen.values() for candidate in group] + hidden
