"""Leaves a model with this rank's stages, says who shares tied weights, and makes the runner."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.errors import ConfigError
from ds_core.holdings import Holding, share_names
from ds_core.placeholder import move_module
from ds_pipeline.config import stage_3_refusal
from ds_pipeline.module import PipelineModule
from ds_pipeline.runtime.choose import placement
from ds_pipeline.stage import Staged, is_staged

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.config import Config
    from ds_core.mesh import MeshPlan
    from ds_pipeline.config import PipelineConfig
    from ds_pipeline.runtime import PipelineRunner

__all__ = ["keep_stages", "make_runner", "pipe_ranks", "tie"]


def pipe_ranks(config: Config, model: torch.nn.Module | None) -> int:
    """How many ranks the model is divided over: what the config says, else what the module was made for.

    Raises:
        ConfigError: the two differ.
    """
    wanted: int | None = config["pipeline"].stages
    if not isinstance(model, PipelineModule):
        return wanted or 1
    is_planned = comm.get_world_size() == 1 and config.facts.world_size > 1  # no rank is started
    made = model.asked_stages if is_planned else model.num_pipeline_stages()
    if wanted is not None and wanted != made and not (made == 1 and config.facts.world_size == 1):
        raise ConfigError(
            f"pipeline.stages is {wanted}, and the PipelineModule was made for {made} (num_stages); give one of them "
            "or the same"
        )
    return made


def keep_stages(module: torch.nn.Module, build: Build) -> torch.nn.Module:
    """This rank's stages of `module`. Called on all ranks.

    Raises:
        ConfigError: parameters are in pieces (zero_optimization.stage 3).
        ModelError: the model cannot be divided.
        PartitionError: its layers cannot be divided as asked.
    """
    section: PipelineConfig = build.config["pipeline"]
    ranks = build.mesh.size("pipe")
    is_pipeline = isinstance(module, PipelineModule)
    if ranks == 1 and not is_pipeline:
        return module
    for problem in stage_3_refusal(build.config, ranks) if ranks > 1 else ():
        raise ConfigError(problem)
    placed = placement(section.schedule, ranks=ranks, stages_per_rank=section.stages_per_rank)
    kept: torch.nn.Module
    if isinstance(module, PipelineModule):
        kept = module
        _configure(module, build, placed)
    else:
        from ds_pipeline.hugging_face import cut

        kept = cut(module, build, section, placed)
    if ranks > 1:
        tie(kept, build)
        share_names(build, kept, build.mesh.group("pipe"))
    return kept


def _configure(module: PipelineModule, build: Build, placed: tuple[int, ...]) -> None:
    config, section = build.config, build.config["pipeline"]
    if config.is_set("pipeline.activation_checkpoint_interval"):
        module.set_checkpoint_interval(section.activation_checkpoint_interval)
    if config.is_set("pipeline.dynamic_shape"):
        module.dynamic_shape = section.dynamic_shape
    method = section.partition if config.is_set("pipeline.partition") else module.partition_method
    if section.seed_layers and not module.seed_layers:
        module.seed_layers = True
        module.forget_layers()
        module.assign(placed, method)
    elif placed != module.stages.rank_of_stage or method != module.partition_method:
        module.assign(placed, method)
    if module.stages.ranks > 1:
        module.gather_layers(build.full)
    move_module(module, build.device)


def tie(module: Any, build: Build) -> None:
    """Notes which ranks share tied weights. Called on all ranks.

    `module` says by key on which pipe ranks each is (`tied_ranks`) and which parameters of this rank it has
    (`tied_parameters`), and takes the group (`set_tie_group`).
    """
    plan = build.mesh.plan
    for key, ranks in sorted(module.tied_ranks().items()):
        if len(ranks) < 2:
            continue
        replicas = build.mesh.replicas_of(list(_groups(plan, ranks)), f"pipeline tie {key}")
        if replicas is None:
            continue
        module.set_tie_group(key, replicas.group)
        for parameter in module.tied_parameters(key):
            build.holdings[parameter] = Holding(replicas)


def _groups(plan: MeshPlan, pipe: list[int]) -> Iterable[list[int]]:
    """World ranks on the pipe ranks `pipe`, one list for each place on the other axes of the model."""
    others = [axis for axis in plan.axes if not axis.splits_batch and axis.name != "pipe"]
    for place in itertools.product(*(range(axis.size) for axis in others)):
        wanted = {axis.name: at for axis, at in zip(others, place, strict=True)}
        coords = {rank: plan.coords(rank) for rank in range(plan.world_size)}
        yield [
            rank
            for rank, at in coords.items()
            if at["pipe"] in pipe and all(at[name] == value for name, value in wanted.items())
        ]


def make_runner(build: Build) -> PipelineRunner | None:
    """The runner, where the module is in stages. Called on all ranks."""
    from ds_pipeline.runtime import PipelineRunner

    module: Any = build.module
    if not is_staged(module):
        return None
    staged: Staged = module
    section: PipelineConfig = build.config["pipeline"]
    return PipelineRunner(build, staged, schedule=section.schedule, stages_per_rank=section.stages_per_rank)
