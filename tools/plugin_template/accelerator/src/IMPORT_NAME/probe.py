"""Is the device here? Cheap, without torch, and never an exception: "no" is an answer with a reason."""

from __future__ import annotations

from pathlib import Path

from ds_core.hooks import Availability

__all__ = ["DEVICE_NODES", "probe"]

DEVICE_NODES = ("/dev/{{key}}[0-9]*",)


def probe(root: Path = Path("/dev")) -> Availability:
    """Whether the driver shows a device below `root`. Replace the pattern with your driver's."""
    found = sorted(root.glob("{{key}}[0-9]*"))
    if not found:
        return Availability(False, f"no {root}/{{key}}0; is the driver loaded?")
    return Availability(True, "", device_count=len(found))
