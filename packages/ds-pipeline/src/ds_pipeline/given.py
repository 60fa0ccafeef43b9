"""What a `PipelineModule` is given: its ranks, its layers' descriptions, and what is known of layers not made yet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ds_core import comm
from ds_pipeline.errors import PipelineError
from ds_pipeline.partition import LayerCost
from ds_pipeline.spec import LayerSpec, TiedLayerSpec

if TYPE_CHECKING:
    from ds_pipeline.topology import ProcessTopology

__all__ = ["begin_process_group", "cost_of", "count_pipe_ranks", "first_of_each_key"]


def begin_process_group() -> None:
    """Starts torch.distributed where the environment has ranks and nobody did."""
    if not comm.is_initialized() and comm.discover(os.environ).world_size > 1:
        comm.init_distributed()


def count_pipe_ranks(num_stages: int | None, topology: ProcessTopology | None) -> int:
    """Pipe ranks asked for, checked against the job; 1 alone.

    Raises:
        PipelineError: none were asked for, or they do not divide the ranks of the job.
    """
    world = comm.get_world_size()
    wanted = num_stages if topology is None else topology.get_dim("pipe")
    if wanted is None:
        raise PipelineError(
            "PipelineModule needs num_stages, the number of pipe ranks, or a topology with an axis 'pipe'"
        )
    if num_stages is not None and wanted != num_stages:
        raise PipelineError(f"num_stages is {num_stages}, and the topology's axis 'pipe' has {wanted} ranks; give one")
    if wanted < 1:
        raise PipelineError(f"num_stages must be at least 1, got {wanted}")
    if world == 1:
        return 1
    if world % wanted:
        raise PipelineError(
            f"num_stages {wanted} does not divide {world} ranks: start a multiple of {wanted} ranks or change it"
        )
    return wanted


def first_of_each_key(specs: Sequence[Any]) -> dict[str, int]:
    """Index of the first layer of each key of tied layers.

    Raises:
        PipelineError: layers of one key are of different types.
    """
    first: dict[str, int] = {}
    for index, spec in enumerate(specs):
        if isinstance(spec, TiedLayerSpec):
            at = first.setdefault(spec.key, index)
            if specs[at].typename is not spec.typename:
                raise PipelineError(
                    f"layers {at} and {index} are tied as {spec.key!r} and made by {specs[at].title} and {spec.title}: "
                    "tied layers are one module; give both the same type, and forward_fn where it is used differently"
                )
    return first


def cost_of(spec: Any) -> LayerCost:
    """What is known of a layer without keeping it."""
    if not isinstance(spec, LayerSpec):
        made = spec
    else:
        try:
            with torch.device("meta"):
                made = spec.build()
        except (RuntimeError, NotImplementedError, TypeError, ValueError):  # it computes with its own values
            made = spec.build()
    title = spec.title if isinstance(spec, LayerSpec) else getattr(spec, "__name__", type(spec).__name__)
    numel = sum(parameter.numel() for parameter in made.parameters()) if isinstance(made, nn.Module) else 0
    return LayerCost(title, numel)
