"""Whether the values of a checkpoint are of the kinds that an engine's own values are, before any part takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ds_core.errors import CheckpointError

__all__ = ["check_kinds", "distrusting"]

_WRONG_KIND = (TypeError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError)
_ANY_SCALAR = (bool, int, float, str)
_SCALARS: Mapping[type, tuple[type, ...]] = {
    bool: _ANY_SCALAR,
    str: _ANY_SCALAR,
    int: (int, float),
    float: (int, float),
}


def check_kinds(own: Any, found: Any, where: str) -> None:
    """Compares `found` with `own`, the same value of the engine that loads, member by member.

    Whole and broken numbers are one kind; in place of text and truth values any scalar will do, as torch's schedules
    have changed those. None is any kind, on either side, and so are members the other side has not: what an engine
    keeps depends on how far it has come. All items of a list are of the kind of the first of `own`, where `own` has one
    kind of items only.

    Raises:
        CheckpointError: something is of another kind; `where` begins the message.
    """
    if own is None or found is None:
        return
    if isinstance(own, dict):
        if not isinstance(found, dict):
            raise _wrong(where, own, found)
        for name in own.keys() & found.keys():
            check_kinds(own[name], found[name], f"{where}.{name}")
    elif isinstance(own, list | tuple):
        if not isinstance(found, list):
            raise _wrong(where, own, found)
        has_one_kind = len({type(item) for item in own}) == 1
        for index, item in enumerate(found if has_one_kind else ()):
            check_kinds(own[0], item, f"{where}[{index}]")
    elif type(found) not in _SCALARS.get(type(own), (type(found),)):
        raise _wrong(where, own, found)


def _wrong(where: str, own: Any, found: Any) -> CheckpointError:
    shown = repr(found)
    shown = shown if len(shown) < 60 else f"{shown[:60]}..."
    return CheckpointError(f"{where} is {shown}, a {type(found).__name__}; it must be a {type(own).__name__}")


def distrusting(run: Callable[[], object]) -> Callable[[], None]:
    """`run`, in which a value of a kind nobody expected is an error of the checkpoint, not of the program."""

    def trusted() -> None:
        try:
            run()
        except _WRONG_KIND as error:
            raise CheckpointError(
                f"it holds a value of a kind that no engine keeps there ({type(error).__name__}: {error})"
            ) from error

    return trusted
