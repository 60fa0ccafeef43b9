"""The environment switches, and the pure decision which plugins are loaded under them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ds_core.errors import PluginError, UnknownPluginError, did_you_mean
from ds_core.plugins.records import PluginState
from ds_core.plugins.scan import Candidate, normalize

__all__ = ["CORE_ID", "RESERVED", "Decision", "Switches", "check_names", "decide", "flag", "matches"]

CORE_ID = "ds-core:builtin"

RESERVED: Mapping[str, str] = {
    "builtin": "ds-core",
    "compression": "ds-compression",
    "cpu": "ds-accel-cpu",
    "cuda": "ds-accel-cuda",
    "hpu": "ds-accel-hpu",
    "inference": "ds-inference",
    "moe": "ds-moe",
    "npu": "ds-accel-npu",
    "pipeline": "ds-pipeline",
    "rocm": "ds-accel-rocm",
    "xpu": "ds-accel-xpu",
    "zero": "ds-zero",
}
"""First-party short names and the one wheel each belongs to; any other wheel using one needs its full id."""


def flag(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    """The value of a 0/1 environment switch."""
    text = environ.get(name, "").strip()
    if text in ("", "0", "1"):
        return default if text == "" else text == "1"
    raise PluginError(f"{name} must be 0 or 1, got {text!r}.")


def _names(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in environ.get(name, "").split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class Switches:
    """What the environment says about plugins.

    Attributes:
        allow: ``DS_PLUGINS``; when not empty, nothing else is loaded but core itself.
        disable: ``DS_PLUGINS_DISABLE``.
        autoload: ``DS_PLUGINS_AUTOLOAD``; when off, only `allow` and core itself are loaded.
        strict: ``DS_PLUGINS_STRICT``; any recorded problem raises.
    """

    allow: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    autoload: bool = True
    strict: bool = False

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Switches:
        """The switches in `environ`.

        Raises:
            PluginError: a 0/1 switch holds something else.
        """
        return cls(
            allow=_names(environ, "DS_PLUGINS"),
            disable=_names(environ, "DS_PLUGINS_DISABLE"),
            autoload=flag(environ, "DS_PLUGINS_AUTOLOAD", default=True),
            strict=flag(environ, "DS_PLUGINS_STRICT", default=False),
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What discovery does with one candidate: load it (state DISCOVERED), or leave it in `state`."""

    state: PluginState
    reason: str = ""


def matches(name: str, *, dist: str, short: str) -> bool:
    """True when `name` (short, dist or ``dist:name``) means the plugin `short` of wheel `dist`."""
    wheel, colon, own = name.partition(":")
    if colon:
        return normalize(wheel) == normalize(dist) and own == short
    if normalize(name) == normalize(dist):
        return True
    return name == short and RESERVED.get(name, normalize(dist)) == normalize(dist)


def _full(name: str, candidate: Candidate) -> bool:
    # True when `name` means the candidate by its wheel, which settles a conflict of short names.
    wheel, colon, own = name.partition(":")
    return normalize(wheel) == normalize(candidate.dist) and (not colon or own == candidate.name)


def check_names(switch: str, names: Iterable[str], candidates: Sequence[Candidate]) -> None:
    """Raises when a name in an environment switch means no installed plugin, naming the nearest one.

    Raises:
        UnknownPluginError: a name matches nothing.
    """
    visible = [c for c in candidates if not c.hidden_by]
    for name in names:
        if switch == "DS_PLUGINS_DISABLE" and name in (CORE_ID, *CORE_ID.split(":")):
            raise PluginError(f"{switch} names {name!r}, which is ds-core itself and cannot be disabled.")
        if any(matches(name, dist=c.dist, short=c.name) for c in visible):
            continue
        owners = [c for c in visible if c.name == name]
        if owners:
            ids = " or ".join(f"{switch}={c.id}" for c in owners)
            raise UnknownPluginError(
                f"{switch} names {name!r}, which is reserved for {RESERVED[name]} (not installed); "
                f"{', '.join(f'{c.dist} {c.version}' for c in owners)} uses it too and needs its full id: {ids}."
            )
        stale = [c for c in candidates if c.hidden_by and matches(name, dist=c.dist, short=c.name)]
        if stale:
            raise UnknownPluginError(
                f"{switch} names {name!r}, which is in {stale[0].dist} {stale[0].version} ({stale[0].location}), but "
                f"another version of that wheel comes first on sys.path ({stale[0].hidden_by}). Remove one of them."
            )
        known = {c.id for c in visible} | {c.name for c in visible} | {normalize(c.dist) for c in visible}
        raise UnknownPluginError(
            f"{switch} names {name!r}, which matches no installed plugin.{did_you_mean(name, known)} "
            f"Installed: {', '.join(sorted(c.id for c in visible)) or 'none'}."
        )


def _blocked(candidate: Candidate, switches: Switches) -> str:
    if candidate.id == CORE_ID:
        return ""
    if any(matches(name, dist=candidate.dist, short=candidate.name) for name in switches.disable):
        return "DS_PLUGINS_DISABLE names it"
    if any(matches(name, dist=candidate.dist, short=candidate.name) for name in switches.allow):
        return ""
    if switches.allow:
        return "DS_PLUGINS does not name it"
    return "" if switches.autoload else "DS_PLUGINS_AUTOLOAD=0"


def decide(candidates: Sequence[Candidate], switches: Switches) -> list[Decision]:
    """The decision for each candidate, in the order given; depends on ids only, never on install order."""
    decisions = [Decision(PluginState.DISCOVERED)] * len(candidates)
    contenders: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if candidate.hidden_by:
            decisions[index] = Decision(
                PluginState.SHADOWED,
                f"another version of {candidate.dist} comes first on sys.path: this {candidate.version} is in "
                f"{candidate.location}, the one used is in {candidate.hidden_by}. Remove one of them",
            )
        elif why := _blocked(candidate, switches):
            decisions[index] = Decision(PluginState.BLOCKED, why)
        elif RESERVED.get(candidate.name, normalize(candidate.dist)) != normalize(candidate.dist):
            if not any(_full(name, candidate) for name in switches.allow):
                decisions[index] = Decision(
                    PluginState.SHADOWED,
                    f"the short name {candidate.name!r} is reserved for {RESERVED[candidate.name]}; "
                    f"{candidate.dist} must be asked for by its full id, {candidate.id}",
                )
        else:
            contenders.setdefault(candidate.name, []).append(index)
    for indices in contenders.values():
        if len(indices) > 1:
            _settle([(i, candidates[i]) for i in indices], switches, decisions)
    return decisions


def _settle(rivals: list[tuple[int, Candidate]], switches: Switches, decisions: list[Decision]) -> None:
    named = [i for i, c in rivals if any(_full(name, c) for name in switches.allow)]
    texts = sorted(f"{c.dist} {c.version} ({c.location})" for _, c in rivals)
    for index, candidate in rivals:
        if len(named) == 1:
            if index != named[0]:
                winner = next(c.id for i, c in rivals if i == named[0])
                decisions[index] = Decision(PluginState.BLOCKED, f"DS_PLUGINS chose {winner} for this short name")
            continue
        lines = " or ".join(
            f"DS_PLUGINS_DISABLE={other.id}"
            for _, other in sorted(rivals, key=lambda r: r[1].id)
            if other.id != candidate.id
        )
        decisions[index] = Decision(
            PluginState.SHADOWED,
            f"{len(rivals)} wheels offer a plugin named {candidate.name!r}: {' and '.join(texts)}. "
            f"To use {candidate.id}, set {lines}, or uninstall the other",
        )
