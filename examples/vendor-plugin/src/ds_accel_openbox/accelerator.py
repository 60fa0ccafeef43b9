"""The device behind ds-core's contract. What is not overridden is answered through torch, see `Accelerator`."""

from __future__ import annotations

from typing import ClassVar

import torch

from ds_accel_openbox.device import NAME, load
from ds_core.accelerator import Accelerator, Capability

__all__ = ["OpenboxAccelerator"]


class OpenboxAccelerator(Accelerator):
    """Two devices with memory of their own. Collectives are core's, staged through the host."""

    name: ClassVar[str] = "openbox"
    device_type: ClassVar[str] = NAME
    capabilities = frozenset(
        {
            Capability.ALLOCATOR_STATS,
            Capability.DATA_PTR,
            Capability.EVENTS,
            Capability.PINNED_MEMORY,
            Capability.STORAGE_ALIASING,
        }
    )

    def __init__(self) -> None:
        load()

    def dtypes(self) -> frozenset[torch.dtype]:
        """Everything the host computes in."""
        floating = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
        return frozenset(floating | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})
