"""Vulkan devices behind ds-core's contract. What is not overridden is answered through torch, see `Accelerator`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ds_accel_vulkan.device import load
from ds_core.accelerator import Accelerator, Capability

__all__ = ["VulkanAccelerator"]


class VulkanAccelerator(Accelerator):
    """The first Vulkan device. It has no streams, no events that measure, no page-locked memory and no collectives."""

    name: ClassVar[str] = "vulkan"
    device_type: ClassVar[str] = "vulkan"
    capabilities = frozenset({Capability.ALLOCATOR_STATS, Capability.STORAGE_ALIASING})

    def __init__(self) -> None:
        load()

    def dtypes(self) -> frozenset[torch.dtype]:
        """What the tests of this wheel train in, and integers."""
        return frozenset({torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool})

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Product name and driver."""
        found = torch.get_device_module(self.device_type).get_device_properties(self._index(index))
        return {"name": found.name, "driver": str(found.driver_version), "api": str(found.api_version)}
