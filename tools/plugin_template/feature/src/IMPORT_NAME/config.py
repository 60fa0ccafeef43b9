"""The ``{{key}}`` section of a configuration."""

from __future__ import annotations

from pydantic import Field

from ds_core.config import Section

__all__ = ["{{class}}Config"]


class {{class}}Config(Section):
    """{{summary}}."""

    enabled: bool = False
    """Whether the engine gets this part."""

    max_norm: float = Field(default=10.0, gt=0)
    """A step whose gradient norm exceeds this is left out."""
