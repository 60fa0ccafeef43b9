"""Pipeline parallelism for ds-core: stages, schedules as data, and a runtime that executes any of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_pipeline.errors import (
        PartitionError,
        PipelineError,
        ScheduleError,
        ScheduleTextError,
        StageError,
        TopologyError,
    )
    from ds_pipeline.module import PipelineModule
    from ds_pipeline.schedules import Costs, Schedule, make_schedule, simulate, validate
    from ds_pipeline.spec import LayerSpec, TiedLayerSpec
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
    "LayerSpec": "ds_pipeline.spec",
    "PartitionError": _ERRORS,
    "PipeDataParallelTopology": _TOPOLOGY,
    "PipeModelDataParallelTopology": _TOPOLOGY,
    "PipelineError": _ERRORS,
    "PipelineModule": "ds_pipeline.module",
    "PipelineParallelGrid": _TOPOLOGY,
    "ProcessTopology": _TOPOLOGY,
    "Schedule": _SCHEDULES,
    "ScheduleError": _ERRORS,
    "ScheduleTextError": _ERRORS,
    "StageError": _ERRORS,
    "TiedLayerSpec": "ds_pipeline.spec",
    "TopologyError": _ERRORS,
    "make_schedule": _SCHEDULES,
    "simulate": _SCHEDULES,
    "validate": _SCHEDULES,
}
"""Names loaded at first use, so that planning a schedule imports no torch."""

__all__ = [
    "Costs",
    "LayerSpec",
    "PartitionError",
    "PipeDataParallelTopology",
    "PipeModelDataParallelTopology",
    "PipelineError",
    "PipelineModule",
    "PipelineParallelGrid",
    "ProcessTopology",
    "Schedule",
    "ScheduleError",
    "ScheduleTextError",
    "StageError",
    "TiedLayerSpec",
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
