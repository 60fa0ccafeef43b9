"""Is the device here? Cheap, without torch, and never an exception: "no" is an answer with a reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from {{import}}.device import BACKEND
from ds_core.hooks import Availability

__all__ = ["DEVICE_NODES", "probe"]

DEVICE_NODES: tuple[str, ...] = ()
"""Patterns of files that are there when the hardware is (``"/dev/{{key}}[0-9]*"``); none when no file tells."""


def probe(backend: str = BACKEND, nodes: tuple[str, ...] = DEVICE_NODES, root: Path = Path("/")) -> Availability:
    """Whether the torch backend is installed, and how many devices the driver shows."""
    if importlib.util.find_spec(backend) is None:
        return Availability(False, f"its torch backend {backend} is not installed")
    if not nodes:
        return Availability(True, device_count=1)
    found = [path for pattern in nodes for path in root.glob(pattern.lstrip("/"))]
    if not found:
        return Availability(False, f"no {' or '.join(nodes)}; is the driver loaded?")
    return Availability(True, device_count=len(found))
