"""What ds-moe brings to ds-core."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ds_core.hooks import AxisRequest, ConfigSection, TransformEntry, hookimpl

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.config import Config
    from ds_core.part import Part

DS_HOOK_API = (1, 3)


@hookimpl
def ds_config_sections() -> Iterable[ConfigSection]:
    """``expert_parallel``."""
    return [
        ConfigSection(
            key="expert_parallel",
            model="ds_moe.config:ExpertParallel",
            summary="Mixture-of-experts blocks of Hugging Face models, their experts divided over ranks.",
        )
    ]


@hookimpl
def ds_mesh_axes(config: Config) -> Iterable[AxisRequest]:
    """The axis that experts are divided over."""
    section = config["expert_parallel"]
    if not section.enabled or section.autoep_size == 1:
        return []
    return [AxisRequest("expert", section.autoep_size, 300, splits_batch=True)]


@hookimpl
def ds_transforms(build: Build) -> Iterable[TransformEntry]:
    """Experts of Hugging Face models."""
    if not build.config["expert_parallel"].enabled:
        return []
    from ds_moe.hugging_face.convert import convert_experts

    return [TransformEntry("hugging_face_experts", convert_experts, before=("pipeline",), after=("expert_parallel",))]


@hookimpl
def ds_parts(build: Build) -> Iterable[Part]:
    """What balances experts after every step."""
    section = build.config["expert_parallel"]
    if not section.enabled or section.load_balance_coeff is None:
        return []
    from ds_moe.hugging_face.bias import CorrectionBias

    return [CorrectionBias()]
