"""What ds-pipeline brings to ds-core: the ``pipeline`` section, the pipe axis, and a runner for models in stages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ds_core.hooks import AxisRequest, CommandEntry, ConfigSection, ReportRow, Share, TransformEntry, hookimpl

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.config import Config
    from ds_core.mesh import MeshPlan
    from ds_core.part import Part
    from ds_core.runner import Runner

DS_HOOK_API = (1, 4)

PIPE_PLACE = 100


@hookimpl
def ds_config_sections() -> Iterable[ConfigSection]:
    """``pipeline``."""
    return [
        ConfigSection(
            key="pipeline",
            model="ds_pipeline.config:PipelineConfig",
            summary="Stages of a model on ranks of their own, and the schedule they run by.",
        )
    ]


@hookimpl
def ds_mesh_axes(config: Config, model: Any) -> Iterable[AxisRequest]:
    """The pipe axis, outermost."""
    ranks: int = config["pipeline"].stages or 1
    if model is not None:  # a config is also read without one, and then without torch
        from ds_pipeline.transform import pipe_ranks

        ranks = pipe_ranks(config, model)
    return [AxisRequest("pipe", ranks, PIPE_PLACE)] if ranks > 1 else []


@hookimpl
def ds_transforms(build: Build) -> Iterable[TransformEntry]:
    """Leaves the model with this rank's stages."""
    from ds_pipeline.transform import keep_stages

    return [TransformEntry("pipeline", keep_stages)]


@hookimpl
def ds_shares(config: Config, model: Any, mesh: MeshPlan, rank: int) -> Iterable[Share]:
    """Parameters of a rank's stages."""
    if mesh.size("pipe") == 1:
        return []
    from ds_pipeline.shares import shares_of

    return shares_of(config, model, mesh.size("pipe"), mesh.coords(rank)["pipe"])


@hookimpl
def ds_parts(build: Build) -> Iterable[Part]:
    """What users call on the engine of a pipeline."""
    from ds_pipeline.part import Pipeline
    from ds_pipeline.stage import is_staged

    return [Pipeline()] if is_staged(build.module) else []


@hookimpl
def ds_runner(build: Build) -> Runner | None:
    """The runner of a model in stages."""
    from ds_pipeline.transform import make_runner

    return make_runner(build)


@hookimpl
def ds_commands() -> Iterable[CommandEntry]:
    """``ds pipeline``."""
    return [CommandEntry("pipeline", "ds_pipeline.commands:app", "Plan pipeline schedules: bubble, memory, pictures.")]


@hookimpl
def ds_report() -> Iterable[ReportRow]:
    """Which schedules there are."""
    from ds_pipeline.schedules import SCHEDULES

    return [ReportRow(section="features", name="ds-pipeline", value=f"schedules {', '.join(SCHEDULES)}", status="ok")]
