"""Logging."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils.logs": (
            "logger log_dist log_dist_once warning_once print_json_dist set_log_level_from_string "
            "get_current_level should_log_le"
        ),
    },
    refusals={
        "LoggerFactory": "the logger is Python's own, logging.getLogger('ds_core')",
    },
)
