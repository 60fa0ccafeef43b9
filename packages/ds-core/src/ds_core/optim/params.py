"""Checks the parameters a config names against what a factory takes, before anything is built.

A config gives JSON values; a factory has a signature. `accepted` reads the signature, `check` compares the two: an
unknown name or a value of the wrong type is a `ConfigError` that names the key, the value and what is allowed, and
JSON's lists and whole floats become the tuples and integers that the factory means.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Union

from ds_core.errors import ConfigError, did_you_mean

__all__ = ["accepted", "check", "required"]

_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable)
_NAMES: dict[str, Any] = {**vars(typing), **{name: getattr(collections.abc, name) for name in collections.abc.__all__}}


class _Match(NamedTuple):
    """Whether a value fits a type, and the value as the factory wants it."""

    fits: bool
    value: Any = None


def accepted(factory: Callable[..., Any], *, skip: int = 1) -> dict[str, Any] | None:
    """Parameter names of `factory` with their types, or None when it takes any keyword (``**params``).

    Args:
        factory: a class or function.
        skip: leading parameters that the caller fills (the parameter groups, the optimizer).
    """
    signature = inspect.signature(factory)
    found: dict[str, Any] = {}
    namespace = {**_NAMES, **_globals_of(factory)}
    for index, parameter in enumerate(signature.parameters.values()):
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            return None
        if index >= skip and parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            found[parameter.name] = _resolve(parameter.annotation, namespace)
    return found


def required(factory: Callable[..., Any], *, skip: int = 1) -> tuple[str, ...]:
    """Names of the parameters of `factory` that have no default."""
    named = list(inspect.signature(factory).parameters.values())[skip:]
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return tuple(p.name for p in named if p.default is inspect.Parameter.empty and p.kind not in variadic)


def check(where: str, owner: str, allowed: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, converted to what `allowed` says.

    Args:
        where: config key the parameters came from, for messages (``"optimizer.params"``).
        owner: what takes them (``"AdamW"``).
        allowed: name to type, as from `accepted`.
        params: what the config says.

    Raises:
        ConfigError: a name is not in `allowed`, or a value does not fit its type.
    """
    checked: dict[str, Any] = {}
    for name, value in params.items():
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise ConfigError(
                f"{where}.{name} is not a parameter of {owner}.{did_you_mean(name, allowed)} Allowed: {known}."
            )
        match = _conform(value, allowed[name])
        if not match.fits:
            raise ConfigError(f"{where}.{name} of {owner} must be {_describe(allowed[name])}, got {value!r}.")
        checked[name] = match.value
    return checked


def _globals_of(factory: Callable[..., Any]) -> dict[str, Any]:
    constructor = vars(factory).get("__init__", factory) if isinstance(factory, type) else factory
    function = inspect.unwrap(constructor)
    return dict(function.__globals__) if isinstance(function, types.FunctionType) else {}


def _resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    """The type behind an annotation; Any where it cannot be known."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, namespace)  # source text of an imported factory, never a config value
    except (NameError, TypeError, AttributeError):
        return Any


def _conform(value: Any, wanted: Any) -> _Match:
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any or isinstance(wanted, typing.TypeVar):
        return _Match(True, value)
    if origin in (Union, types.UnionType):
        matches = (_conform(value, arm) for arm in args)
        return next((match for match in matches if match.fits), _Match(False))
    if origin is Literal:
        return _Match(value in args, value)
    if origin is tuple or wanted is tuple:
        return _conform_tuple(value, args)
    if origin in _SEQUENCES or wanted in _SEQUENCES:
        return _conform_sequence(value, args)
    if origin is collections.abc.Callable:
        return _Match(callable(value), value)
    return _conform_scalar(value, origin or wanted)


def _conform_scalar(value: Any, wanted: Any) -> _Match:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is None or wanted is type(None):
        return _Match(value is None)
    if wanted is float:
        return _Match(True, float(value)) if number and not math.isnan(value) else _Match(False)
    if wanted is int:
        return _Match(True, int(value)) if number and float(value).is_integer() else _Match(False)
    return _Match(isinstance(value, wanted) if isinstance(wanted, type) else True, value)


def _conform_tuple(value: Any, args: tuple[Any, ...]) -> _Match:
    if not isinstance(value, (list, tuple)):
        return _Match(False)
    if not args or args[-1] is Ellipsis:
        matches = [_conform(item, args[0] if args else Any) for item in value]
    elif len(args) != len(value):
        return _Match(False)
    else:
        matches = [_conform(item, arm) for item, arm in zip(value, args, strict=True)]
    return _Match(all(m.fits for m in matches), tuple(m.value for m in matches))


def _conform_sequence(value: Any, args: tuple[Any, ...]) -> _Match:
    if not isinstance(value, (list, tuple)):
        return _Match(False)
    matches = [_conform(item, args[0] if args else Any) for item in value]
    return _Match(all(m.fits for m in matches), [m.value for m in matches])


def _describe(wanted: Any) -> str:
    """A type in a config author's words."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(arm) for arm in args))
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)} values ({', '.join(_describe(arm) for arm in args)})"
    if origin in (tuple, *_SEQUENCES) or wanted in (tuple, *_SEQUENCES):
        return f"a list of {_describe(args[0])}" if args else "a list"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a string", type(None): "null"}
    return words.get(wanted) or str(getattr(wanted, "__name__", wanted))
