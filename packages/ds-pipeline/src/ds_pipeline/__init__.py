"""Pipeline parallelism for ds-core: stages, schedules as data, and a runtime that executes any of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_pipeline.errors import PipelineError, ScheduleError, ScheduleTextError, TopologyError
    from ds_pipeline.schedules import Costs, Schedule, make_schedule, simulate, validate
    from ds_pipeline.topology import (
        PipeDataParallelTopology,
        PipelineParallelGrid,
        PipeModelDataParallelTopology,
        ProcessTopology,
    )

__version__ = "0.1.0"

_ERRORS = "ds_pipeline.errors"
_SCHEDULES = "ds_pipeline.schedules"
_TOPOLOGY = "ds_pipeline.topology"
_EXPORTS = {
    "Costs": _SCHEDULES,
    "PipeDataParallelTopology": _TOPOLOGY,
    "PipeModelDataParallelTopology": _TOPOLOGY,
    "PipelineError": _ERRORS,
    "PipelineParallelGrid": _TOPOLOGY,
    "ProcessTopology": _TOPOLOGY,
    "Schedule": _SCHEDULES,
    "ScheduleError": _ERRORS,
    "ScheduleTextError": _ERRORS,
    "TopologyError": _ERRORS,
    "make_schedule": _SCHEDULES,
    "simulate": _SCHEDULES,
    "validate": _SCHEDULES,
}
"""Names loaded at first use, so that planning a schedule imports no torch."""

__all__ = [
    "Costs",
    "PipeDataParallelTopology",
    "PipeModelDataParallelTopology",
    "PipelineError",
    "PipelineParallelGrid",
    "ProcessTopology",
    "Schedule",
    "ScheduleError",
    "ScheduleTextError",
    "TopologyError",
    "__version__",
    "make_schedule",
    "simulate",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
