"""What ds-accel-rgpu brings to ds-core. Imports nothing heavy; what is heavy is named."""

from __future__ import annotations

from collections.abc import Sequence

from ds_accel_rgpu.probe import probe
from ds_core.hooks import AcceleratorEntry, hookimpl

DS_HOOK_API = (1, 0)


@hookimpl
def ds_accelerators() -> Sequence[AcceleratorEntry]:
    """The device of the server that RGPU_OPSERVER names; taken before the CPU, after first-party devices."""
    return [
        AcceleratorEntry("rgpu", is_available=probe, factory="ds_accel_rgpu.accelerator:RgpuAccelerator", priority=40)
    ]
