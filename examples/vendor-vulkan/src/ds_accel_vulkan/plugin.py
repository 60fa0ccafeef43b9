"""What ds-accel-vulkan brings to ds-core. Imports nothing heavy; what is heavy is named."""

from __future__ import annotations

from collections.abc import Sequence

from ds_accel_vulkan.probe import probe
from ds_core.hooks import AcceleratorEntry, hookimpl

DS_HOOK_API = (1, 0)


@hookimpl
def ds_accelerators() -> Sequence[AcceleratorEntry]:
    """Every Vulkan device, a software one included: taken before the CPU, after first-party devices."""
    return [
        AcceleratorEntry(
            "vulkan", is_available=probe, factory="ds_accel_vulkan.accelerator:VulkanAccelerator", priority=50
        )
    ]
