"""Who is where among the ranks of a pipelined job, under the names that users of DeepSpeed know."""

from ds_pipeline.topology.axes import (
    PipeDataParallelTopology,
    PipeModelDataParallelTopology,
    ProcessTopology,
    topology_of,
)
from ds_pipeline.topology.grid import PipelineParallelGrid

__all__ = [
    "PipeDataParallelTopology",
    "PipeModelDataParallelTopology",
    "PipelineParallelGrid",
    "ProcessTopology",
    "topology_of",
]
