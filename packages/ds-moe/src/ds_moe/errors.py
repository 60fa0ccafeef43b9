"""Every error ds-moe raises on purpose, as one small tree.

    MoeError (DsError)
    ├── MoeConfigError (ConfigError)    a setting of a layer or of the configuration that cannot be used
    │   └── ConversionError             experts of a model that cannot be found, or not computed in our way
    └── RoutingError (ValueError)       logits, experts or weights that do not fit what they are given to

Messages say what is wrong, the value, what is allowed, and what to change.
"""

from __future__ import annotations

from ds_core.errors import ConfigError, DsError

__all__ = ["ConversionError", "MoeConfigError", "MoeError", "RoutingError"]


class MoeError(DsError):
    """The root of this tree."""


class MoeConfigError(MoeError, ConfigError):
    """A setting of a layer or of the configuration that cannot be used."""


class ConversionError(MoeConfigError):
    """Experts of a model that cannot be found as the configuration asks, or that cannot be computed in our way."""


class RoutingError(MoeError, ValueError):
    """Logits, experts or weights that do not fit what they are given to."""
