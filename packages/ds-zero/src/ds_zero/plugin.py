"""What ds-zero brings to ds-core: the ``zero_optimization`` section and the part that shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ds_core.hooks import ConfigSection, ReportRow, hookimpl

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
def ds_parts(build: Build) -> Iterable[Part]:
    """The sharded space; and, where asked for, the check on unused parameters."""
    from ds_zero.part import UnusedCheck, Zero

    config = build.config["zero_optimization"]
    return [Zero()] if config.ignore_unused_parameters else [Zero(), UnusedCheck()]


@hookimpl
def ds_report() -> Iterable[ReportRow]:
    """Which stages this version has."""
    return [ReportRow(section="features", name="ds-zero", value="stages 0 and 1", status="ok")]
