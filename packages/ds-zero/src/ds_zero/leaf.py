"""Modules that ZeRO-3 fetches whole: a marked one is gathered with everything inside it.

Mixture-of-experts blocks need it: which expert runs differs from rank to rank, while a gather needs all ranks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import nn

from ds_core.errors import ConfigError, did_you_mean

__all__ = [
    "get_z3_leaf_modules",
    "set_z3_leaf_module",
    "set_z3_leaf_modules",
    "set_z3_leaf_modules_by_name",
    "set_z3_leaf_modules_by_suffix",
    "unset_z3_leaf_modules",
    "z3_leaf_module",
    "z3_leaf_parameter",
]

_T = TypeVar("_T")
_LEAVES: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def set_z3_leaf_modules(
    model: nn.Module, leaf_module_classes: Iterable[type[nn.Module] | str], raise_if_not_found: bool = True
) -> list[nn.Module]:
    """Mark every module of the given classes as a leaf and return those modules, in the model's order.

    Args:
        leaf_module_classes: classes (their subclasses match too) or names of classes, plain (``"SparseBlock"``) or
            qualified (``"package.module.SparseBlock"``); a name matches exactly that class.
        raise_if_not_found: whether a class no module is of is an error.

    Raises:
        ConfigError: an entry is neither a class nor a name, or (with `raise_if_not_found`) matches nothing.
    """
    return _mark_classes(model, leaf_module_classes, True, raise_if_not_found)


def unset_z3_leaf_modules(
    model: nn.Module, leaf_module_classes: Iterable[type[nn.Module] | str], raise_if_not_found: bool = True
) -> list[nn.Module]:
    """Take the mark off every module of the given classes and return those modules. As `set_z3_leaf_modules`."""
    return _mark_classes(model, leaf_module_classes, False, raise_if_not_found)


def set_z3_leaf_module(model: nn.Module, flag: bool = True) -> None:
    """Mark this one module as a leaf, or take its mark off."""
    if flag:
        _LEAVES.add(model)
    else:
        _LEAVES.discard(model)


def set_z3_leaf_modules_by_name(
    model: nn.Module, names: Iterable[str], flag: bool = True, raise_if_not_found: bool = True
) -> list[nn.Module]:
    """Mark (or unmark) the modules with these full names (``"layers.0.mlp"``) and return them.

    Raises:
        ConfigError: with `raise_if_not_found`, a name that no module has.
    """

    def matches(wanted: str, name: str) -> bool:
        return name == wanted

    return _mark_names(model, names, matches, "name", flag, raise_if_not_found)


def set_z3_leaf_modules_by_suffix(
    model: nn.Module, suffixes: Iterable[str], flag: bool = True, raise_if_not_found: bool = True
) -> list[nn.Module]:
    """Mark (or unmark) the modules whose full names end in one of these, at a dot (``"mlp"``, ``"block.mlp"``).

    Raises:
        ConfigError: with `raise_if_not_found`, a suffix that no module's name has.
    """

    def matches(wanted: str, name: str) -> bool:
        return name == wanted or name.endswith(f".{wanted}")

    return _mark_names(model, suffixes, matches, "suffix", flag, raise_if_not_found)


def get_z3_leaf_modules(model: nn.Module) -> list[nn.Module]:
    """The marked modules of a model, itself included, in its order."""
    return [module for module in model.modules() if module in _LEAVES]


def z3_leaf_module(model: nn.Module) -> bool:
    """Whether this module is marked as a leaf."""
    return model in _LEAVES


def z3_leaf_parameter(param: nn.Parameter) -> bool:
    """Whether a parameter belongs to a marked module, directly or to a module inside it."""
    return any(param is inside for module in list(_LEAVES) for inside in module.parameters())


def _mark_classes(
    model: nn.Module, classes: Iterable[type[nn.Module] | str], flag: bool, raise_if_not_found: bool
) -> list[nn.Module]:
    wanted = _listed(classes, "leaf_module_classes")
    for entry in wanted:
        given: object = entry
        if not isinstance(given, str) and not (isinstance(given, type) and issubclass(given, nn.Module)):
            raise ConfigError(f"leaf_module_classes takes module classes and names of classes, got {given!r}")
    found: dict[nn.Module, None] = {}
    missing = set(range(len(wanted)))
    for module in model.modules():
        hits = {index for index, entry in enumerate(wanted) if _is_of(module, entry)}
        missing -= hits
        if hits:
            found[module] = None
    if missing and raise_if_not_found:
        entry = wanted[min(missing)]
        name = entry if isinstance(entry, str) else entry.__qualname__
        known = {type(module).__name__ for module in model.modules()}
        raise ConfigError(
            f"leaf module class {name!r} matches no module of {type(model).__name__}."
            f"{did_you_mean(name.rpartition('.')[2], known)} Its classes are {', '.join(sorted(known))}; name "
            "one of them or pass raise_if_not_found=False"
        )
    return _marked(found, flag)


def _is_of(module: nn.Module, entry: type[nn.Module] | str) -> bool:
    if not isinstance(entry, str):
        return isinstance(module, entry)
    kind = type(module)
    return entry in (kind.__name__, kind.__qualname__, f"{kind.__module__}.{kind.__qualname__}")


def _mark_names(
    model: nn.Module,
    names: Iterable[str],
    matches: Callable[[str, str], bool],
    what: str,
    flag: bool,
    raise_if_not_found: bool,
) -> list[nn.Module]:
    wanted = _listed(names, what)
    named = dict(model.named_modules())
    for entry in wanted:
        if raise_if_not_found and not any(matches(entry, name) for name in named):
            raise ConfigError(
                f"leaf module {what} {entry!r} matches no module of {type(model).__name__}.{did_you_mean(entry, named)}"
                f" Use a {what} from model.named_modules(), or pass raise_if_not_found=False"
            )
    found = {module: None for name, module in named.items() if any(matches(entry, name) for entry in wanted)}
    return _marked(found, flag)


def _listed(entries: Iterable[_T], what: str) -> list[_T]:
    if isinstance(entries, (str, type)):
        raise ConfigError(f"leaf modules by {what} take a list, got {entries!r}; write [{entries!r}]")
    return list(entries)


def _marked(found: dict[nn.Module, None], flag: bool) -> list[nn.Module]:
    for module in found:
        set_z3_leaf_module(module, flag)
    return list(found)
