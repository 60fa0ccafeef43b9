"""Every error ds-moe raises on purpose, as one small tree.

    MoeError (DsError)
    ├── MoeConfigError (ConfigError)    a setting of a layer or of the configuration that cannot be used
    └── RoutingError (ValueError)       logits, experts or weights that do not fit what they are given to

Messages say what is wrong, the value, what is allowed, and what to change.
"""

from __future__ import annotations

from ds_core.errors import ConfigError, DsError

__all__ = ["MoeConfigError", "MoeError", "RoutingError"]


class MoeError(DsError):
    """The root of this tree."""


class MoeConfigError(MoeError, ConfigError):
    """A setting of a layer or of the configuration that cannot be used."""


class RoutingError(MoeError, ValueError):
    """Logits, experts or weights that do not fit what they are given to."""
