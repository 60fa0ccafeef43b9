"""What ds-moe brings to ds-core: the expert axis, the transforms that divide experts, the part that balances them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ds_core.hooks import AxisRequest, ConfigSection, ReportRow, Share, TransformEntry, hookimpl

if TYPE_CHECKING:
    import torch

    from ds_core.build import Build
    from ds_core.config import Config
    from ds_core.mesh import MeshPlan
    from ds_core.part import Part

DS_HOOK_API = (1, 4)


@hookimpl
def ds_config_sections() -> Iterable[ConfigSection]:
    """``expert_parallel``."""
    key = "use_data_before_expert_parallelism"
    return [
        ConfigSection(
            key="expert_parallel",
            model="ds_moe.config:ExpertParallel",
            legacy_keys={key: f"expert_parallel.{key}"},
            summary="Experts divided over ranks; and mixture-of-experts blocks of Hugging Face models.",
        )
    ]


@hookimpl
def ds_mesh_axes(config: Config, model: torch.nn.Module | None) -> Iterable[AxisRequest]:
    """The expert axis, as large as the layers of the model and the configuration say."""
    from ds_moe.axis import axis_requests

    section = config["expert_parallel"]
    asked: dict[str, int] = {}
    if model is not None:
        from ds_moe.parallel import agreed_sizes

        asked = agreed_sizes(model)
    if section.enabled:
        asked["expert_parallel.autoep_size"] = section.autoep_size
    return axis_requests(asked, around_data=section.use_data_before_expert_parallelism)


@hookimpl
def ds_transforms(build: Build) -> Iterable[TransformEntry]:
    """Each rank keeps its experts: those of layers, and those of Hugging Face models."""
    from ds_moe.parallel import divide_experts, divide_made_experts

    entries = [
        TransformEntry("expert_parallel", divide_experts, before=("pipeline",)),
        TransformEntry("expert_names", divide_made_experts, after=("pipeline", "hugging_face_experts")),
    ]
    if build.config["expert_parallel"].enabled:
        from ds_moe.hugging_face.convert import convert_experts

        entries.append(
            TransformEntry("hugging_face_experts", convert_experts, before=("pipeline",), after=("expert_parallel",))
        )
    return entries


@hookimpl
def ds_shares(config: Config, model: torch.nn.Module, mesh: MeshPlan, rank: int) -> Iterable[Share]:
    """A rank's experts."""
    from ds_moe.shares import shares_of

    return shares_of(config, model, mesh, rank)


@hookimpl
def ds_parts(build: Build) -> Iterable[Part]:
    """Loads of experts: metrics and biases."""
    from ds_moe.balance import MoeBalance
    from ds_moe.names import MoeNames

    parts: list[Part] = [MoeBalance(), MoeNames()]
    section = build.config["expert_parallel"]
    if section.enabled and section.load_balance_coeff is not None:
        from ds_moe.hugging_face.bias import CorrectionBias

        parts.append(CorrectionBias())
    return parts


@hookimpl
def ds_report() -> Iterable[ReportRow]:
    """What this version has."""
    return [ReportRow(section="features", name="ds-moe", value="experts over ranks, top-k routers", status="ok")]
