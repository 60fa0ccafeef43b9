"""Every error ds-pipeline raises on purpose, as one small tree.

DsError
└── PipelineError (RuntimeError)        a pipeline cannot be built or driven as asked
    ├── ScheduleError (ValueError)      a schedule that cannot be made, or that no set of ranks could execute
    │   └── ScheduleTextError           a schedule's text that does not parse: names line and column
    ├── TopologyError (ValueError)      ranks that do not fit the axes, or an axis that is not there
    ├── PartitionError (ValueError)     layers that cannot be divided into stages as asked
    └── StageError                      a stage failed or is gone; raised on every rank
"""

from __future__ import annotations

from ds_core.errors import DsError

__all__ = ["PartitionError", "PipelineError", "ScheduleError", "ScheduleTextError", "StageError", "TopologyError"]


class PipelineError(DsError, RuntimeError):
    """A pipeline cannot be built or driven as asked."""


class ScheduleError(PipelineError, ValueError):
    """A schedule that cannot be made from these numbers, or that no set of ranks could execute."""


class ScheduleTextError(ScheduleError):
    """A schedule's text that does not parse.

    Attributes:
        line: where, counted from 1.
        column: where, counted from 1.
    """

    def __init__(self, message: str, *, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {message}")
        self.line: int = line
        self.column: int = column


class TopologyError(PipelineError, ValueError):
    """Ranks that do not fit the axes, or an axis that is not there."""


class PartitionError(PipelineError, ValueError):
    """The layers of a model cannot be divided into stages as asked."""


class LayerFileError(PipelineError, ValueError):
    """Files of layers that do not fit the model, or layers that cannot be written one by one."""


class StageError(PipelineError):
    """A stage failed or is gone. The message has the stage, its rank, and what this rank was doing."""
