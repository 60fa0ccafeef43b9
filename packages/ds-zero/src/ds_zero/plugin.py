"""What ds-zero brings to ds-core: the ``zero_optimization`` section and the part that shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ds_core.hooks import CommandEntry, ConfigSection, ReportRow, TransformEntry, hookimpl

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.part import Part

DS_HOOK_API = (1, 0)


@hookimpl
def ds_config_sections() -> Iterable[ConfigSection]:
    """``zero_optimization``."""
    return [
        ConfigSection(
            key="zero_optimization",
            model="ds_zero.config:ZeroConfig",
            summary="Sharding of optimizer state, gradients and parameters over data-parallel ranks.",
        )
    ]


@hookimpl
def ds_transforms(build: Build) -> Iterable[TransformEntry]:
    """Where values of parameters come from that were built in shards; before any transform reads them."""
    from ds_zero.part import read_from_pieces

    return [
        TransformEntry("zero_values", read_from_pieces, before=("expert_parallel", "hugging_face_experts", "pipeline"))
    ]


@hookimpl
def ds_parts(build: Build) -> Iterable[Part]:
    """The sharded space; and, where asked for, checks."""
    from ds_zero.checks import MastersFromWeights, SanityChecks, UnusedCheck
    from ds_zero.part import Zero

    config = build.config["zero_optimization"]
    asked = {
        UnusedCheck: not config.ignore_unused_parameters,
        SanityChecks: config.enable_sanity_checks,
        MastersFromWeights: not config.load_from_fp32_weights,
    }
    return [Zero(), *(part() for part, is_asked in asked.items() if is_asked)]


@hookimpl
def ds_commands() -> Iterable[CommandEntry]:
    """``ds plan``."""
    return [CommandEntry("plan", "ds_zero.commands:app", "Say what a job takes of memory and sends, before it runs.")]


@hookimpl
def ds_report() -> Iterable[ReportRow]:
    """Which stages this version has."""
    return [ReportRow(section="features", name="ds-zero", value="stages 0 to 3", status="ok")]
