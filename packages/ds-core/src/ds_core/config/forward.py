"""Top-level keys in spellings of former times and of programs, under their present keys.

Note [Keys with a dot]
    Programs that fill in a DeepSpeed config hold names such as ``zero_optimization.reduce_bucket_size``, and some put
    them into the config as they are. DeepSpeed reads no such key. Here it fills in what its section leaves open; what
    the section says stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ds_core.config.problems import Problem, dotted, show
from ds_core.errors import ConfigError

if TYPE_CHECKING:
    from ds_core.config.registry import Registry
    from ds_core.config.section import Section
    from ds_core.config.walk import Findings

__all__ = ["forward_top_level"]


def forward_top_level(tree: dict[str, Any], registry: Registry, found: Findings) -> dict[str, Any]:
    """`tree` with dotted and old top-level spellings under their present keys."""
    tree = _unfold(tree, registry, found)
    result = {key: value for key, value in tree.items() if key not in registry.legacy}
    for old in (key for key in tree if key in registry.legacy):
        target = registry.legacy[old]
        section, _, inner = target.partition(".")
        found.notes.append(f"{old} is an old key, read as {target}")
        if not inner and section not in result:
            result[section] = tree[old]
        elif inner and not isinstance(result.get(section), Mapping):
            if result.get(section) is not None:
                raise ConfigError(f"{section} must be an object, got {show(result[section])}")
            result[section] = {inner: tree[old]}
        elif inner and inner not in result[section]:
            result[section] = {**result[section], inner: tree[old]}
        elif (result[section][inner] if inner else result[section]) == tree[old]:
            continue
        else:
            found.problems.append(
                Problem(old, f"{old} and {target} are set to different values and mean the same; keep {target}")
            )
        found.moved[dotted(section, inner)] = old
    return result


def _unfold(tree: dict[str, Any], registry: Registry, found: Findings) -> dict[str, Any]:
    # See Note [Keys with a dot].
    from ds_core.config.walk import is_open

    result = dict(tree)
    for key, value in tree.items():
        section, _, name = key.partition(".")
        inside = tree.get(section)
        if not name or section not in registry.claims or not (isinstance(inside, Mapping) or is_open(inside)):
            continue
        del result[key]
        said: Mapping[str, Any] = result[section] if isinstance(result.get(section), Mapping) else {}
        meant = _meaning(registry.model(section), name)
        same = [other for other in said if _meaning(registry.model(section), other) == meant]
        standing = [other for other in same if not is_open(said[other])]
        if standing:
            found.notes.append(f"{key}: {show(value, key)} at the top level counts for nothing beside {section} itself")
            continue
        found.notes.append(f"{key} at the top level is read as if it stood inside {section}")
        result[section] = {**{other: said[other] for other in said if other not in same}, name: value}
    return result


def _meaning(model: type[Section], name: str) -> str:
    """The present key of a section's key."""
    moved = model.legacy_keys.get(name, name)
    return model.aliases.get(name, moved if isinstance(moved, str) else moved.to)
