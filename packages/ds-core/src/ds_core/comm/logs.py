"""Switch the comms logger on and read it: `configure`, `log_summary`, and the small questions around them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from ds_core.comm.counter import CommReport, scope
from ds_core.comm.objects import gather_json
from ds_core.comm.profile import CommsLoggerSettings
from ds_core.comm.ranks import get_rank
from ds_core.comm.state import comms_logger, counter

__all__ = [
    "configure",
    "get_comm_operation_count",
    "get_logged_comm_ops",
    "has_comm_data",
    "log_summary",
    "report",
    "reset",
    "reset_log",
]

logger = logging.getLogger(__name__)


def configure(
    deepspeed_config: Any = None,
    enabled: bool | None = None,
    prof_all: bool | None = None,
    prof_ops: list[str] | None = None,
    verbose: bool | None = None,
    debug: bool | None = None,
) -> None:
    """Set the comms logger from a config's `comms_logger` section, then from the arguments that are not None.

    Args:
        deepspeed_config: a mapping with a `comms_logger` key, or a `ds_core.config.Config`; values left out are reset
            to their defaults.
    """
    settings = comms_logger.settings
    section = _section(deepspeed_config)
    if section is not None:
        settings = CommsLoggerSettings().updated(section)
    comms_logger.settings = settings.updated(
        {"enabled": enabled, "prof_all": prof_all, "prof_ops": prof_ops, "verbose": verbose, "debug": debug}
    )


def report() -> CommReport:
    """Calls and bytes since the last `reset`, by operation, group and scope."""
    return counter.report()


def reset() -> None:
    """Start counting from zero."""
    counter.reset()


def reset_log() -> None:
    """Forget what the comms logger measured."""
    comms_logger.reset()


def has_comm_data() -> bool:
    """Whether the comms logger measured anything."""
    return bool(comms_logger.names())


def get_comm_operation_count(name: str | None = None) -> int:
    """How many calls the comms logger measured, of one name or of all."""
    return comms_logger.count(name)


def get_logged_comm_ops() -> list[str]:
    """Names under which the comms logger measured anything."""
    return comms_logger.names()


def log_summary(show_straggler: bool = False, return_dict: bool = False) -> dict[str, Any] | None:
    """Write the comms logger's table on rank 0, and return it as a dict when asked to.

    Args:
        show_straggler: add, for each row, how much longer this job's slowest rank was in the calls than its fastest:
            time lost waiting for stragglers. A collective: called on all ranks, with the same rows on each.
        return_dict: return name -> payload bytes -> count, total_ms, avg_ms, algbw_gbps, busbw_gbps (, straggler_ms).
    """
    summary = comms_logger.summary()
    if show_straggler:
        _add_stragglers(summary)
    if get_rank() == 0:
        text = _table(summary, show_straggler)
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", text)
        else:  # the caller asked for it: a logging set-up that hides it must not
            sys.stderr.write(f"{text}\n")
    return dict(summary) if return_dict else None


def _section(config: Any) -> Mapping[str, Any] | None:
    if config is None:
        return None
    section = config.get("comms_logger") if isinstance(config, Mapping) else config["comms_logger"]
    if section is None or isinstance(section, Mapping):
        return section
    return {name: getattr(section, name) for name in ("enabled", "verbose", "prof_all", "prof_ops", "debug")}


def _add_stragglers(summary: dict[str, dict[int, dict[str, float]]]) -> None:
    mine = {f"{name}\0{size}": row["total_ms"] for name, sizes in summary.items() for size, row in sizes.items()}
    settings, comms_logger.settings = comms_logger.settings, CommsLoggerSettings()  # not to measure itself
    try:
        with scope("log_summary"):
            ranks = gather_json(mine)
    finally:
        comms_logger.settings = settings
    for name, sizes in summary.items():
        for size, row in sizes.items():
            times = [rank[f"{name}\0{size}"] for rank in ranks if f"{name}\0{size}" in rank]
            row["straggler_ms"] = max(times) - min(times)


def _table(summary: Mapping[str, Mapping[int, Mapping[str, float]]], show_straggler: bool) -> str:
    lines = [
        f"{'operation':<28}{'bytes':>14}{'calls':>8}{'total ms':>12}{'average ms':>12}{'Gbit/s':>10}{'bus Gbit/s':>12}"
        + (f"{'straggler ms':>14}" if show_straggler else "")
    ]
    for name, sizes in summary.items():
        for size, row in sizes.items():
            line = (
                f"{name:<28}{size:>14,}{row['count']:>8.0f}{row['total_ms']:>12.2f}{row['avg_ms']:>12.3f}"
                f"{row['algbw_gbps']:>10.2f}{row['busbw_gbps']:>12.2f}"
            )
            lines.append(line + (f"{row['straggler_ms']:>14.2f}" if show_straggler else ""))
    if len(lines) == 1:
        lines.append("nothing was measured: set comms_logger.enabled, or call configure(enabled=True)")
    return "\n".join(lines)
