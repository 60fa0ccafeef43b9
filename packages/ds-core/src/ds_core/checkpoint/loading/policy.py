"""How a load treats names: what they are called in the checkpoint, which may be absent, and which may be left over.

Note [Patterns]
    A name may hold ``*``, which stands for any characters, also dots and none. In a mapping of names each ``*`` on the
    right stands for what the one in the same place on the left stood for: ``{"body.*": "model.layers.*"}``. A name
    without ``*`` wins over patterns; among patterns the first that fits wins.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ds_core.errors import CheckpointError, did_you_mean

__all__ = ["LoadPolicy", "Rename", "make_policy", "matches"]

Rename = Mapping[str, str] | Callable[[str], str]
"""The module's names to the checkpoint's; see Note [Patterns]."""

ERROR = "error"
MISSING = (ERROR, "keep", "frozen")
UNEXPECTED = (ERROR, "ignore")


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """What a load may leave out.

    Attributes:
        rename: the checkpoint's name of each parameter and buffer of the module; None: the same.
        missing: names or patterns of the module's that the checkpoint may lack, or ``error``: none, ``keep``: any,
            ``frozen``: parameters that are not trained.
        unexpected: names or patterns of the checkpoint's that the module may lack, or ``error``: none, ``ignore``: any.
    """

    rename: Rename | None = None
    missing: str | tuple[str, ...] = ERROR
    unexpected: str | tuple[str, ...] = ERROR

    @property
    def is_strict(self) -> bool:
        """Whether nothing may be missing."""
        return self.missing == ERROR

    def may_lack(self, name: str, *, is_frozen: bool) -> bool:
        """Whether the checkpoint may lack `name` of the module."""
        if isinstance(self.missing, str):
            return self.missing == "keep" or (self.missing == "frozen" and is_frozen)
        return any(matches(pattern, name) for pattern in self.missing)

    def may_have(self, name: str) -> bool:
        """Whether the checkpoint may have `name` although the module has not."""
        if isinstance(self.unexpected, str):
            return self.unexpected == "ignore"
        return any(matches(pattern, name) for pattern in self.unexpected)

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """The checkpoint's name of each of `names`.

        Raises:
            CheckpointError: an entry fits no name, or the callable gave no name.
        """
        names = list(names)
        if self.rename is None:
            return {name: name for name in names}
        if not isinstance(self.rename, Mapping):
            found = {name: self.rename(name) for name in names}
            wrong = [name for name, target in found.items() if not target]
            if wrong:
                raise CheckpointError(f"rename gave {found[wrong[0]]!r} for {wrong[0]!r}; it must give a name")
            return found
        idle = [entry for entry in self.rename if not any(matches(entry, name) for name in names)]
        if idle:
            raise CheckpointError(
                f"rename has {idle[0]!r}, which no parameter or buffer of the model is called."
                f"{did_you_mean(idle[0], names)} The model's names are on the left, the checkpoint's on the right"
            )
        return {name: _target(name, self.rename) for name in names}


def _target(name: str, table: Mapping[str, str]) -> str:
    if name in table:
        return table[name]
    for pattern, target in table.items():
        found = _regex(pattern).fullmatch(name) if "*" in pattern else None
        if found is not None:
            between = target.split("*")
            return between[0] + "".join(map(str.__add__, found.groups(), between[1:]))
    return name


def make_policy(
    rename: Rename | None = None,
    missing: str | Iterable[str] | None = None,
    unexpected: str | Iterable[str] | None = None,
    *,
    strict: bool = True,
) -> LoadPolicy:
    """The policy of these arguments; None is what `strict` says.

    Raises:
        CheckpointError: a word that is not known, or a mapping whose two sides have different numbers of ``*``.
    """
    if isinstance(rename, Mapping):
        for entry, target in rename.items():
            if entry.count("*") != target.count("*"):
                raise CheckpointError(f"rename maps {entry!r} to {target!r}; both must have the same number of *")
    return LoadPolicy(
        rename,
        _choice("missing", missing if missing is not None else ERROR if strict else "keep", MISSING),
        _choice("unexpected", unexpected if unexpected is not None else ERROR if strict else "ignore", UNEXPECTED),
    )


def _choice(key: str, value: str | Iterable[str], words: tuple[str, ...]) -> str | tuple[str, ...]:
    if not isinstance(value, str):
        return tuple(value)
    if value not in words:
        raise CheckpointError(
            f"{key} must be {', '.join(map(repr, words))} or a list of names and patterns, got {value!r}"
        )
    return value


def matches(pattern: str, name: str) -> bool:
    """Whether `name` is what `pattern` says; see Note [Patterns]."""
    return pattern == name or ("*" in pattern and _regex(pattern).fullmatch(name) is not None)


@functools.lru_cache(maxsize=1024)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile("(.*?)".join(map(re.escape, pattern.split("*"))), re.DOTALL)
