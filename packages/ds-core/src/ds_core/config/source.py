"""Reading a config from a path, a mapping or base64 text into plain JSON values, with every defect reported."""

from __future__ import annotations

import base64
import binascii
import json
import math
import numbers
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from ds_core.config.problems import Problem, dotted, raise_problems, show
from ds_core.errors import ConfigError

__all__ = ["Source", "plain", "read"]

Source = str | PurePath | Mapping[str, Any] | None
"""A path, base64 of JSON or HJSON text, a mapping, or None for a config of defaults."""

_MAX_DEPTH = 64
_INT_LIMIT = 2**63


class _Duplicates(dict[str, Any]):
    """An object read from text, with the keys that stood in it more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.repeated: list[str] = []
        for key, _ in pairs:
            if key in seen and key not in self.repeated:
                self.repeated.append(key)
            seen.add(key)


def read(source: Source) -> tuple[dict[str, Any], str]:
    """The config as nested dicts, lists, strings, numbers, booleans and None, and the name to call it by.

    Raises:
        ConfigError: it cannot be read, is empty, is not an object, repeats a key, or holds what JSON cannot.
    """
    if source is None:
        return {}, "the defaults"
    if isinstance(source, Mapping):
        return _plain_object(source, "the config dict"), "the config dict"
    if isinstance(source, PurePath):
        return _plain_object(_parse(_read_file(Path(source)), str(source)), str(source)), source.name
    if isinstance(source, str):
        return _read_text_source(source)
    raise ConfigError(f"a config is a path, a dict or base64 text, got {type(source).__name__}")


def _read_text_source(source: str) -> tuple[dict[str, Any], str]:
    if not source.strip():
        raise ConfigError("the config is an empty string; give a path, a dict or base64 of JSON")
    if source.lstrip().startswith("{"):
        raise ConfigError("the config is JSON text; give the path of a file, a dict, or the text in base64")
    path = Path(source)
    if _is_readable(path):
        return _plain_object(_parse(_read_file(path), source), source), path.name
    text = _decode_base64(source)
    if text is not None:
        return _plain_object(_parse(text, "the base64 config"), "the base64 config"), "the base64 config"
    if _is_dir(path):
        raise ConfigError(f"config {source!r} is a directory; give the file in it")
    raise ConfigError(f"config file {source[:200]!r} does not exist, and the text is not base64 of JSON")


def _is_readable(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # a base64 text can be longer than a name may be, or hold a null byte
        return False


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # UnicodeDecodeError and a null byte in the name are ValueErrors
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error


def _decode_base64(source: str) -> str | None:
    """The text behind standard or URL-safe base64, or None when `source` is not that."""
    compact = "".join(source.split()).replace("-", "+").replace("_", "/")
    try:
        text = base64.b64decode(compact, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    return text if any(char in text for char in "{:\n") or not text.strip() else None


def _parse(text: str, label: str) -> Any:
    """JSON, or failing that HJSON, to Python values; objects remember their repeated keys."""
    if not text.strip():
        raise ConfigError(f"{label} is empty; a config is a JSON object, {{}} at least")
    try:
        return json.loads(text, object_pairs_hook=_Duplicates)
    except RecursionError as error:
        raise ConfigError(f"{label} is nested deeper than {_MAX_DEPTH} levels") from error
    except ValueError as error:
        strict = error
    try:
        return _hjson_loads()(text, object_pairs_hook=_Duplicates)
    except RecursionError as error:
        raise ConfigError(f"{label} is nested deeper than {_MAX_DEPTH} levels") from error
    except (ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
        # The parser of HJSON fails in its own ways on broken text; the strict parser's position is the useful one.
        raise ConfigError(f"{label} is neither JSON nor HJSON: {strict}") from error


def _hjson_loads() -> Callable[..., Any]:
    import hjson

    loads: Callable[..., Any] = hjson.loads
    return loads


def _plain_object(value: Any, label: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label} must hold a JSON object, got {show(value)}")
    problems: list[Problem] = []
    result = plain(value, "", problems)
    raise_problems(problems, label)
    assert isinstance(result, dict), type(result)
    return result


def plain(value: Any, key: str, problems: list[Problem], depth: int = 0) -> Any:
    """`value` copied into plain JSON values; what has no JSON form is added to `problems` and left out as None."""
    if depth > _MAX_DEPTH:
        problems.append(Problem(key, f"{key[:80]}... is nested deeper than {_MAX_DEPTH} levels"))
        return None
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain_text(value, key, problems)
    if isinstance(value, numbers.Integral):
        return _plain_int(int(value), key, problems)
    if isinstance(value, numbers.Real):
        return _plain_float(value, key, problems)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, key, problems, depth)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{key}[{index}]", problems, depth + 1) for index, item in enumerate(value)]
    if type(value).__name__ == "bool" or type(value).__name__ == "bool_":  # numpy's boolean is no numbers.Number
        return bool(value)
    what = f"{type(value).__module__}.{type(value).__qualname__}"
    problems.append(Problem(key, f"{key} holds a {what}; a config holds JSON values only"))
    return None


def _plain_text(value: str, key: str, problems: list[Problem]) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        problems.append(Problem(key, f"{key} holds text that is not Unicode, {show(value)}"))
        return ""
    return str(value)


def _plain_int(value: int, key: str, problems: list[Problem]) -> int | None:
    if -_INT_LIMIT <= value < _INT_LIMIT:
        return value
    problems.append(Problem(key, f"{key} must fit 64 bits, got an integer of {value.bit_length()} bits"))
    return None


def _plain_float(value: Any, key: str, problems: list[Problem]) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        problems.append(Problem(key, f"{key} does not fit a 64-bit number"))
        return None
    if not math.isnan(number):
        return number
    problems.append(Problem(key, f"{key} must be a number, got NaN"))
    return None


def _plain_mapping(value: Mapping[Any, Any], key: str, problems: list[Problem], depth: int) -> dict[str, Any]:
    if isinstance(value, _Duplicates):
        for name in value.repeated:
            full = dotted(key, name[:80])
            problems.append(Problem(full, f"{full} stands twice in one object; keep one of them"))
    result: dict[str, Any] = {}
    for name, item in value.items():
        if not isinstance(name, str):
            problems.append(Problem(key, f"{key or 'the config'} has the key {name!r}; keys are strings"))
            continue
        text = _plain_text(name, key or "the config", problems)
        result[text] = plain(item, dotted(key, text), problems, depth + 1)
    return result
