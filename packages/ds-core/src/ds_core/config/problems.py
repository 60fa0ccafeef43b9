"""One finding about a config, and the single error that reports all findings of one config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ds_core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

__all__ = ["Problem", "dotted", "one_of", "raise_problems", "show", "translate", "unknown_key"]

_SHOWN_CHARS = 60
_UNSAID = object()
_SECRET_NAMES = frozenset({"api_key", "hf_auth_token", "password", "secret", "token"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: the dotted key it is about, the line to print, and the error class it asks for."""

    key: str
    message: str
    error: type[ConfigError] = ConfigError


def dotted(*parts: str) -> str:
    """Key parts joined with dots, without the empty ones."""
    return ".".join(part for part in parts if part)


def show(value: Any, key: str = "") -> str:
    """`value` as it stands in a config file, shortened; secrets are hidden."""
    if value is not None and key.rpartition(".")[2] in _SECRET_NAMES:
        return "***"
    text = json.dumps(value, default=str, ensure_ascii=True)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def one_of(names: Iterable[str]) -> str:
    """``a, b or c``."""
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"


def unknown_key(prefix: str, name: str, known: Iterable[str], *, value: Any = _UNSAID, hint: str = "") -> Problem:
    """The finding that `name`, written with `value`, is no key of the section `prefix` (the top level when empty)."""
    names = sorted(known)
    plain = name and name.strip() == name and len(name) <= _SHOWN_CHARS
    key = dotted(prefix, name if plain else show(name))
    given = "" if value is _UNSAID else f" (its value: {show(value, key)})"
    message = f"{key} is not a known key{given}.{did_you_mean(name, names)}"
    if hint:
        message += f" {hint}"
    elif names:
        message += f" {prefix or 'The top level'} takes {', '.join(names)}."
    return Problem(key, message)


def raise_problems(problems: Sequence[Problem], label: str) -> None:
    """Raise one error whose first line is the first problem and whose further lines are the others.

    Raises:
        ConfigError: there is a problem; a subclass of it when every problem asks for the same one.
    """
    if not problems:
        return
    messages = list(dict.fromkeys(_one_line(problem.message) for problem in problems))
    kinds = {problem.error for problem in problems}
    error = kinds.pop() if len(kinds) == 1 else ConfigError
    if len(messages) > 1:
        messages.append(f"({len(messages)} problems in {label})")
    raise error("\n".join(messages))


def _one_line(message: str) -> str:
    """`message` with what does not print escaped; a key can hold a line end."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in message)


def translate(error: ValidationError, prefix: str, data: Any) -> list[Problem]:
    """Findings in place of a pydantic error about the section `prefix`, validated from `data`."""
    expectations: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for detail in error.errors(include_url=False):
        path, value = _path_in(detail["loc"], data)
        key = dotted(prefix, *path)
        if detail["type"] == "extra_forbidden":
            problems.append(unknown_key(dotted(prefix, *path[:-1]), path[-1], (), value=value))
        elif detail["type"] == "missing":
            missing = dotted(key, str(detail["loc"][-1]))
            problems.append(Problem(missing, f"{missing} is required and is not set"))
        elif detail["type"] == "value_error":
            text = str(detail.get("ctx", {}).get("error", detail["msg"]))
            problems.append(Problem(key, f"{text} (in {key})" if key and key not in text else text))
        else:
            expectations.setdefault(key, []).append(_expected(detail))
            values[key] = value
    for key, expected in expectations.items():
        allowed = one_of(dict.fromkeys(expected))
        problems.append(Problem(key, f"{key} must be {allowed}, got {show(values[key], key)}"))
    return problems


def _path_in(loc: tuple[int | str, ...], data: Any) -> tuple[list[str], Any]:
    """The part of a pydantic location that indexes `data` (union members' tags do not), and what it leads to."""
    path: list[str] = []
    for step in loc:
        in_object = isinstance(data, dict) and step in data
        if in_object or (isinstance(data, (list, tuple)) and isinstance(step, int) and step < len(data)):
            data = data[step]
            path.append(str(step))
    return path, data


_EXPECTED_TYPES = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "an integer",
    "is_instance_of": "a string",
    "list_type": "a list",
    "model_type": "an object",
    "none_required": "null",
    "string_type": "a string",
    "tuple_type": "a list",
}
_EXPECTED_LIMITS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "a list of at least {min_length} items",
    "too_long": "a list of at most {max_length} items",
    "string_too_short": "a string of at least {min_length} characters",
    "string_pattern_mismatch": "a string that matches {pattern}",
    "literal_error": "{expected}",
    "enum": "{expected}",
}


def _expected(detail: ErrorDetails) -> str:
    """What pydantic would have taken, in the words of this package."""
    kind = detail["type"]
    if kind in _EXPECTED_TYPES:
        return _EXPECTED_TYPES[kind]
    if kind in _EXPECTED_LIMITS:
        return _EXPECTED_LIMITS[kind].format(**detail.get("ctx", {}))
    return f"valid ({detail['msg']})"
