"""What {{dist}} brings to ds-core. Imports nothing heavy; what is heavy is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ds_core.hooks import ConfigSection, hookimpl

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.part import Part

DS_HOOK_API = (1, 0)


@hookimpl
def ds_config_sections() -> Sequence[ConfigSection]:
    """The section of the configuration this wheel owns."""
    return [
        ConfigSection(
            key="{{key}}",
            model="{{import}}.config:{{class}}Config",
            summary="{{summary}}",
        ),
    ]


@hookimpl
def ds_parts(build: Build) -> Sequence[Part]:
    """The engine part, when the configuration turns it on."""
    section = build.config["{{key}}"]
    if not section.enabled:
        return []
    from {{import}}.part import {{class}}

    return [{{class}}(section)]
