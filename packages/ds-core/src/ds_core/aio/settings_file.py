"""Writes the ``aio`` section: to a file of its own, or into a config whose other keys and old text are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_core.errors import ConfigError

__all__ = ["merge_section", "write_section"]


def write_section(path: Path, section: Mapping[str, Any]) -> None:
    """Writes a new JSON file with nothing but the section.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} exists; merge into it with --config {path}, or name a new file")
    _replace(path, {"aio": dict(section)})


def merge_section(path: Path, section: Mapping[str, Any]) -> Path:
    """Puts the section's keys into a JSON config, and returns where the old text is kept.

    Other keys stay, in their order, those of the section that are not given too. The config is replaced in one step,
    so that it is whole at any moment.

    Raises:
        ConfigError: it is missing, no plain JSON object, or cannot be written. Nothing is changed then.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text, object_pairs_hook=_no_key_twice)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not plain JSON ({error}); rewriting it would lose comments or keys, put the section in by hand"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("aio", {}), dict):
        raise ConfigError(f"{path} must be a JSON object, with an object under the key aio if it has one")
    kept = {key: value for key, value in found.get("aio", {}).items() if key != "thread_count"}  # an old name
    backup = _backup(path, text)
    _replace(path, {**found, "aio": {**kept, **section}})
    return backup


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return made


def _backup(path: Path, text: str) -> Path:
    number = 0
    while True:
        backup = path.with_name(f"{path.name}.bak{number or ''}")
        try:
            with backup.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            return backup
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"the old {path} cannot be kept as {backup} ({error.strerror})") from error


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error
