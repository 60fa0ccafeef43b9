"""What ``ds report`` says of the device beside its state."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from ds_core.hooks import DeviceFacts

__all__ = ["facts"]


def facts() -> DeviceFacts:
    """What the backend was built for; a real device adds its driver, its libraries, and every mismatch it knows."""
    from ds_accel_openbox.built_for import TORCH

    unproven: Sequence[str] = ("there is no hardware: memory of its own is memory of the host",)
    return DeviceFacts(
        built_for=f"torch {TORCH}", libraries={"torch": importlib.metadata.version("torch")}, unproven=unproven
    )
