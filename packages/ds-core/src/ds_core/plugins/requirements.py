"""Checks, before a plugin is imported, that the ds-core and torch it was built for are the ones installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ds_core.plugins.scan import normalize

__all__ = ["installed_version", "unmet_requirement"]

_CHECKED = ("ds-core", "torch")
_PLAIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+?)\s*\(?(?P<op>>=|~=)\s*(?P<spec>\d+(?:\.\d+)*)\)?")
_RELEASE = re.compile(r"(\d+(?:\.\d+)*)(?:\+.*)?")


def installed_version(dist: str) -> str | None:
    """The version of an installed wheel from its metadata (nothing is imported), or None."""
    import importlib.metadata

    try:
        return importlib.metadata.version(dist)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plainly_met(requirement: str, version: str) -> bool:
    """True for the common shapes ``name>=1.2`` and ``name~=1.2`` on a final release.

    A fast yes only: importing `packaging` costs 15-40 ms in every process, so it decides the rest and every no.
    """
    shape = _PLAIN.fullmatch(requirement.strip())
    release = _RELEASE.fullmatch(version)
    if shape is None or release is None:
        return False
    have = [int(part) for part in release[1].split(".")]
    want = [int(part) for part in shape["spec"].split(".")]
    have += [0] * (len(want) - len(have))
    if shape["op"] == "~=" and (len(want) < 2 or have[: len(want) - 1] != want[:-1]):
        return False
    return have >= want


def unmet_requirement(
    wheel: str, requires: Iterable[str], version_of: Callable[[str], str | None] = installed_version
) -> str:
    """Why this wheel does not fit the installed ds-core and torch, and which side to change; empty when it fits.

    Args:
        wheel: the wheel's name and version, for the message.
        requires: its ``Requires-Dist`` lines; only those on ds-core and torch are looked at.
        version_of: installed version of a wheel by normalized name, None when it is not installed.
    """
    for line in requires:
        head = re.match(r"\s*([A-Za-z0-9._-]+)", line)
        if head is None or normalize(head[1]) not in _CHECKED:
            continue
        name = normalize(head[1])
        version = version_of(name)
        if version is not None and _plainly_met(line, version):
            continue
        reason = _judge(wheel, line, name, version)
        if reason:
            return reason
    return ""


def _judge(wheel: str, line: str, name: str, version: str | None) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        return f"{wheel} states a requirement that cannot be read: {line!r} ({error})"
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return ""
    wanted = f"{name}{requirement.specifier}"
    if version is None:
        return f"{wheel} needs {wanted}, which is not installed. Run: pip install '{wanted}'"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    own = wheel.split(" ", 1)[0]
    return (
        f"{wheel} needs {wanted}, but {name} {version} is installed. "
        f"Run: pip install '{wanted}', or install another version of {own} that fits {name} {version}"
    )
