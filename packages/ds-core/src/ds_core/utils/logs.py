"""Logging by rank: on some ranks only, once only, as JSON; and levels by name."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_core.errors import ConfigError

__all__ = [
    "get_current_level",
    "log_dist",
    "log_dist_once",
    "logger",
    "print_json_dist",
    "set_log_level_from_string",
    "should_log_le",
    "warning_once",
]

logger = logging.getLogger("ds_core")
"""The logger every module of ds-core logs under."""

LEVELS = {name: logging.getLevelName(name.upper()) for name in ("debug", "info", "warning", "error", "critical")}


def _rank() -> int:
    from ds_core import comm

    return comm.get_rank() if comm.is_initialized() else 0


def log_dist(message: str, ranks: Sequence[int] | None = None, level: int = logging.INFO) -> None:
    """Logs on the listed ranks only; on all where none or -1 is listed. Before ranks are known, this process is 0."""
    rank = _rank()
    if not ranks or -1 in ranks or rank in ranks:
        logger.log(level, "[rank %d] %s", rank, message)


@functools.cache
def _said(message: str, ranks: tuple[int, ...] | None, level: int) -> None:
    log_dist(message, ranks, level)


def log_dist_once(message: str, ranks: Sequence[int] | None = None, level: int = logging.INFO) -> None:
    """`log_dist`, the first time a process is given these arguments."""
    _said(message, None if ranks is None else tuple(ranks), level)


def warning_once(message: str) -> None:
    """Warns the first time a process is given this message."""
    _said(message, None, logging.WARNING)


def print_json_dist(
    message: Mapping[str, Any], ranks: Sequence[int] | None = None, path: str | Path | None = None
) -> None:
    """Writes `message` with ``"rank"`` as JSON to the file `path` (or the log), on the listed ranks."""
    rank = _rank()
    if ranks and -1 not in ranks and rank not in ranks:
        return
    text = json.dumps({**message, "rank": rank})
    if path is None:
        logger.info("%s", text)
    else:
        Path(path).write_text(text, encoding="utf-8")


def set_log_level_from_string(log_level_str: str, custom_logger: logging.Logger | None = None) -> None:
    """Sets the level of a logger, by default ours.

    Raises:
        ConfigError: no such level.
    """
    (custom_logger or logger).setLevel(_level(log_level_str))


def get_current_level() -> int:
    """The level our logger has."""
    return logger.getEffectiveLevel()


def should_log_le(max_log_level_str: str) -> bool:
    """Whether our logger's level is at most this one.

    Raises:
        ConfigError: no such level.
    """
    return get_current_level() <= _level(max_log_level_str)


def _level(name: str) -> int:
    if name.lower() not in LEVELS:
        raise ConfigError(f"a log level is one of {', '.join(LEVELS)}, got {name!r}")
    return int(LEVELS[name.lower()])
