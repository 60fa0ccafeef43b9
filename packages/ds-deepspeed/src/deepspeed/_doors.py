"""Doors from DeepSpeed's names to ours: a name is looked up where it lives when it is first asked for.

Note [Names that are not here]
    A name that another wheel will bring is known, and asking for it names that wheel. ``from deepspeed.x import name``
    raises ImportError, as code that tries an import expects; ``deepspeed.x.name`` raises AttributeError, so that
    ``hasattr`` answers no. Python drops the message of an AttributeError in the first form, so the two are told apart
    by the instruction that asks.
"""

from __future__ import annotations

import dis
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from ds_core.config.catalog import RELEASED

__all__ = ["Doors", "doors", "later", "refused"]

_IMPORT_FROM = dis.opmap["IMPORT_FROM"]
_EXTRAS = {"ds_moe": "moe", "ds_pipeline": "pipeline"}
"""Packages of released wheels that this one does not depend on, each with the extra that installs it."""


class Doors(NamedTuple):
    """What a module assigns to its own ``__getattr__`` and ``__dir__``."""

    getattr: Callable[[str], Any]
    dir: Callable[[], list[str]]


def doors(
    module: str,
    leads: Mapping[str, str] | None = None,
    *,
    waiting: Mapping[str, str] | None = None,
    refusals: Mapping[str, str] | None = None,
) -> Doors:
    """``__getattr__`` and ``__dir__`` for a module.

    Args:
        module: its name.
        leads: home module to the names that it has, separated by blanks; ``ours=theirs`` where they differ.
        waiting: wheel to the names that it will bring, separated by blanks.
        refusals: name to the reason why there is nothing behind it, and what to use.
    """
    homes = _homes(leads or {})
    reasons = {
        name: _later(f"{module}.{name}", wheel) for wheel, text in (waiting or {}).items() for name in text.split()
    }
    reasons.update({name: f"{module}.{name} is not here: {reason}" for name, reason in (refusals or {}).items()})

    def lookup(name: str) -> Any:
        if name in homes:
            home, own = homes[name]
            try:
                found = importlib.import_module(home)
                value = getattr(found, own) if own else found
            except ImportError as error:
                raise _refusal(_not_installed(f"{module}.{name}", home, error), sys._getframe(1)) from error
            setattr(sys.modules[module], name, value)
            return value
        if name in reasons:
            raise _refusal(reasons[name], sys._getframe(1))
        if not name.startswith("__") and _is_submodule(module, name):
            try:
                return importlib.import_module(f"{module}.{name}")
            except ImportError as error:
                raise _refusal(str(error), sys._getframe(1)) from error
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[module]), *homes})

    return Doors(lookup, listing)


def later(module: str, wheel: str) -> NoReturn:
    """For a module whose whole contents another wheel will bring."""
    raise ImportError(_later(module, wheel), name=module)


def refused(module: str, reason: str) -> NoReturn:
    """For a module that nothing will bring."""
    raise ImportError(f"{module} is not here: {reason}", name=module)


def _homes(leads: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    found = {}
    for home, text in leads.items():
        for item in text.split():
            name, _, own = item.partition("=")
            found[name] = (home, "" if own == "." else own or name)
    return found


def _later(what: str, wheel: str) -> str:
    when = f"a later version of {wheel}" if wheel in RELEASED else f"the wheel {wheel}, which is not released yet"
    return f"{what} is not in this version: it will come with {when}"


def _not_installed(what: str, home: str, error: ImportError) -> str:
    package = home.partition(".")[0]
    if package in _EXTRAS and error.name == package:
        wheel = package.replace("_", "-")
        return f"{what} needs the wheel {wheel}: pip install {wheel} (or deepspeed[{_EXTRAS[package]}])"
    return f"{what} cannot be loaded from {home}: {error}"


def _refusal(message: str, frame: Any) -> ImportError | AttributeError:
    """See Note [Names that are not here]."""
    code = frame.f_code.co_code
    asks_by_import = 0 <= frame.f_lasti < len(code) and code[frame.f_lasti] == _IMPORT_FROM
    return ImportError(message) if asks_by_import else AttributeError(message)


def _is_submodule(module: str, name: str) -> bool:
    return hasattr(sys.modules[module], "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None
